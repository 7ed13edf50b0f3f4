"""Plants faults in the engine, one at a time, and expects red tests: `python tests/mutants.py [WORD]`.

Each fault is one edit of one line, made in a temporary copy of the package, and is run against the tests that
ought to notice it. The exit code is 1 if a fault survives, or if the tests are red without one. With WORD,
only the faults whose file or description contains it are planted.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
_LAW = ["test_rules"]
_FOLDS = [
    *("test_fold", "test_fold_names", "test_fold_corners", "test_reasons", "test_fold_wrong_elsewhere"),
    "test_fold_nobody",
]
_OF_MODULES = (
    *("aliases", "axes", "calls", "equal", "fold", "layers", "pointwise"),
    *("reach", "shadow", "surgery", "trace", "windows"),
)
_RECALIBRATION = ["test_recalibrate", "test_estimate"]
TESTS = {
    "double_double": ["test_double_double", "test_constants"],
    "affine": ["test_affine"],
    "constants": ["test_constants"],
    "chains": ["test_chains"],
    "shapes": ["test_fold_corners"],
    "facts": ["test_sources", *_LAW, "test_fold"],
    "sources": ["test_sources", "test_constants"],
    "moves": _LAW,
    "carriers": _LAW,
    "arithmetic": _LAW,
    "selections": _LAW,
    "sinks": [*_LAW, "test_fold_corners"],
    "plan": [*_FOLDS, "test_constants"],
    "edit": _FOLDS,
    "formulas": ["test_recompute"],
    "enclosures": ["test_enclosures"],
    "tensors": ["test_tensors"],
    "recompute": ["test_recompute"],
    "certificate": ["test_certificate"],
    "nudge": ["test_nudge"],
    "measure": ["test_measure", "test_verify"],
    "algebra_gate": ["test_verify"],
    "alike": ["test_verify"],
    "structure": ["test_verify", "test_structure"],
    "sketch": ["test_sketch"],
    "verify": ["test_verify", "test_cli_verify"],
    "moments": ["test_moments"],
    "multiset": _RECALIBRATION,
    "estimate": _RECALIBRATION,
    "sweep": _RECALIBRATION,
    "stages": ["test_stages", *_RECALIBRATION],
    "running": _RECALIBRATION,
    "network": _RECALIBRATION,
    "samples": ["test_samples", *_RECALIBRATION],
    "journal": _RECALIBRATION,
    "runtime": ["test_session", *_RECALIBRATION],
    **{f"pytorch/{name}": ["test_pytorch_fold", "test_pytorch_traps"] for name in _OF_MODULES},
}
"""Where the faults of each module ought to be noticed."""
SECONDS = 180
"""The time for the tests of one fault: without the measure of `plan`, a fold goes in circles."""


@dataclass(frozen=True)
class Mutant:
    """A fault.

    Attributes:
        module: The file in bnfold.
        what: The fault in words.
        before: Text that occurs once in the file.
        after: What takes its place.
    """

    module: str
    what: str
    before: str
    after: str

    @property
    def source(self) -> str:
        return (ROOT / "bnfold" / f"{self.module}.py").read_text()

    @property
    def is_current(self) -> bool:
        """Whether the text is still there, once."""
        return self.source.count(self.before) == 1


M = Mutant
# fmt: off
MUTANTS = [
    M("sources", "epsilon is dropped", "return var + DoubleDouble.of(epsilon)", "return var"),
    M("sources", "epsilon of the file is ignored", 'op.real("epsilon", _EPSILON)', "_EPSILON"),
    M("sources", "epsilon is not the float32", "float(np.float32(1e-5))", "1e-5"),
    M("sources", "the bias is forgotten", "return s, bias - s * mean", "return s, -(s * mean)"),
    M("sources", "the mean is not scaled", "return s, bias - s * mean", "return s, bias - mean"),
    M("sources", "training_mode is ignored", 'bool(op.integer("training_mode", 0))', "False"),
    M("sources", "opset bound of training_mode off by one", "if op.opset >= 14:", "if op.opset >= 13:"),
    M("sources", "opset bound of is_test off by one", "elif op.opset >= 7:", "elif op.opset >= 6:"),
    M("sources", "is_test is inference by default",
      'not op.integer("is_test", 0)', 'not op.integer("is_test", 1)'),
    M("sources", "spatial is ignored", 'not op.integer("spatial", 1)', "False"),
    M("sources", "two outputs are fine", "if outputs != 1:", "if outputs > 2:"),
    M("sources", "empty outputs count", "sum(1 for o in op.node.outputs if o.name)", "len(op.node.outputs)"),
    M("sources", "a variance of -epsilon is fine", "np.all(raised.hi > 0.0)", "np.all(raised.hi >= 0.0)"),
    M("sources", "a constant may broadcast the data", "if size != shape[k]:", "if size < shape[k] < size:"),
    M("sources", "Sub of data has no sign",
      "scale = DoubleDouble.of(-1.0 if negative and i == 0 else 1.0)", "scale = DoubleDouble.of(1.0)"),
    M("sources", "a run goes on behind a graph output",
      "len(uses) != 1 or value.is_graph_output()", "len(uses) != 1"),
    M("sources", "a run goes on behind a second reader", "len(uses) != 1 or value", "not uses or value"),
    M("facts", "an overridable initializer is a constant",
      "value.is_graph_input() and self.model.ir_version >= 4",
      "value.is_graph_input() and self.model.ir_version >= 9"),
    M("facts", "operands are aligned to the right in every opset",
      "if self.opset < 7 and i == 1 and", "if self.opset < 6 and i == 1 and"),
    M("facts", "a function of the name of an operator is one",
      "not node.domain and node.op_type not in self._replaced", "not node.domain"),
    M("shapes", "-1 is a size", "return dim if dim >= 0 else None", "return dim"),
    M("shapes", "nodes are inferred in the order of the file", "for node in _in_order(graph):",
      "for node in graph:"),
    M("chains", "a backward Slice begins before the data", "max(start + size, 0)", "start + size"),
    M("chains", "Unsqueeze adds no axes", "np.expand_dims(x, given or ())", "x"),
    M("chains", "integers are divided towards minus infinity",
      "np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))", "a // b"),
    M("chains", "nothing is too large", "for n in shape) > LIMIT:", "for n in shape) > 2 * LIMIT:"),
    M("affine", "composition the wrong way round",
      "after.scale * self.shift + after.shift", "self.scale * after.shift + self.shift"),
    M("affine", "repeat tiles", "self._each(lambda a: a.repeat(n))", "self._each(lambda a: a.tile(n))"),
    M("affine", "a scale of 0 is positive", "self.scale.hi > 0.0", "self.scale.hi >= 0.0"),
    M("affine", "only the scale must be uniform",
      "_is_uniform(scale) and _is_uniform(shift)", "_is_uniform(scale)"),
    M("affine", "s·x + t = s·(x + t)",
      "Affine.of(None, self.shift / self.scale, self.axis)", "self.shifting()"),
    M("constants", "new factors may vanish", "cls(np.ones((), dtype), numbers, None, _ONE)",
      "cls(np.zeros((), dtype), None, numbers, _NOTHING)"),
    M("constants", "the first look has no doubt", "np.asarray(low != high)", "np.asarray(low != low)"),
    M("constants", "float16 may collapse",
      "self.dtype == np.float16 and np.any(", "self.dtype is None and np.any("),
    M("constants", "a scale forgets the shift before it",
      "shift = None if shift is None else change.scale * shift", "shift = shift"),
    M("double_double", "float64 is enough",
      "DoubleDouble(*_quick_two_sum(q, rest / other.hi), ", "DoubleDouble(q, np.zeros_like(q), "),
    M("double_double", "rounded twice",
      "return narrow(_to_odd(nearest, (hi - nearest) + lo), dtype)", "return narrow(nearest, dtype)"),
    M("carriers", "Transpose the other way round",
      "affine.at(_permutation(op)[affine.axis])", "affine.at(_permutation(op).index(affine.axis))"),
    M("carriers", "counted padding is ignored",
      "not counted or not affine.has_shift, Reason.PADDING", "True or not affine.has_shift, Reason.PADDING"),
    M("carriers", "MaxPool takes negative scales",
      '"MaxPool": _unchanged(_not_spatial, need_positive, _alone)',
      '"MaxPool": _unchanged(_not_spatial, _alone)'),
    M("carriers", "MaxPool's indices may be read",
      '"MaxPool": _unchanged(_not_spatial, need_positive, _alone)',
      '"MaxPool": _unchanged(_not_spatial, need_positive)'),
    M("carriers", "DCR is CRD",
      'return affine.repeat(squared) if op.text("mode", "DCR") == "CRD"',
      'return affine.repeat(squared) if op.text("mode", "DCR") == "DCR"'),
    M("carriers", "Dropout is at rest in opset 6",
      "if op.opset < 7:\n        active = not", "if op.opset < 6:\n        active = not"),
    M("carriers", "Reshape tiles nothing",
      "return affine.tile(size // channels).at(axis)", "return affine.repeat(size // channels).at(axis)"),
    M("carriers", "ReduceSum keeps its shift", "before.shift / n", "before.shift"),
    M("carriers", "Cast from integers", "if dtype is None or dtype not in FLOATS:", "if dtype is None:"),
    M("carriers", "a Cast is pulled to the narrower type",
      "_need_room(op, after, before)", "_need_room(op, before, before)"),
    M("carriers", "a Cast is pushed to the narrower type",
      "_need_room(op, before, after)", "_need_room(op, before, before)"),
    M("carriers", "a Cast may change the kind of float", 'np.can_cast(now, then, "safe")',
      "now.itemsize <= then.itemsize"),
    M("carriers", "Resize of the affine's axis",
      "before == after, Reason.AXIS", "before <= after, Reason.AXIS"),
    M("arithmetic", "both operands take the shift",
      "{**scaled, **{i: h for i, h in handed.items() if h is not None}}",
      "dict.fromkeys(range(len(op.node.inputs)), affine)"),
    M("arithmetic", "Sub has no sign", '(1, -1) if op.type == "Sub" else', '(1, 1) if op.type == "Sub" else'),
    M("arithmetic", "a divisor takes the scale",
      'if op.type == "Div" and i == 1:', 'if op.type == "Div" and i == 2:'),
    M("arithmetic", "Relu takes negative scales",
      "    need_positive(op, affine)\n    return pull_scale", "    return pull_scale"),
    M("arithmetic", "every channel is padded alike", "images.is_uniform()", "images.is_finite()"),
    M("moves", "the shift stays unscaled before Relu",
      "left=affine.shift_before()", "left=affine.shifting()"),
    M("selections", "Gather may disagree with itself",
      "need(placed.taken(index).same(affine)", "need(bool(index.size)"),
    M("selections", "Split begins at 0", "np.arange(end - size, end)", "np.arange(size)"),
    M("selections", "Slice ignores its steps",
      "slice_of(start, end, step, size)", "slice_of(start, end, 1, size)"),
    M("sinks", "a padded Conv takes a shift",
      "need(not _is_padded(op), Reason.PADDING", "need(True, Reason.PADDING"),
    M("sinks", "SAME pads nothing", "* stride + reach > size", "* stride + reach > size + reach"),
    M("sinks", "groups are mixed", "reshape(groups, 1, n).broadcast_to((groups, rows, n))",
      "reshape(1, groups, n).broadcast_to((rows, groups, n))"),
    M("sinks", "pads cut off nothing of ConvTranspose", "all(p >= r for", "all(p >= r - 1 for"),
    M("sinks", "alpha is ignored", 'DoubleDouble.of(op.real("alpha", 1.0))', "_ONE"),
    M("sinks", "beta is ignored",
      'scale = out.scale * DoubleDouble.of(op.real("beta", 1.0))', "scale = out.scale"),
    M("sinks", "beta stays",
      'return {} if op.real("beta", 1.0) == 1.0 else', 'return {} if op.real("beta", 1.0) != 0.0 else'),
    M("sinks", "transB is ignored", 'columns = 0 if op.integer("transB", 0) else 1', "columns = 1"),
    M("sinks", "the mean of a second normalization is forgotten",
      "slope * (affine.shift - mean)", "slope * affine.shift"),
    M("sinks", "a second normalization keeps its mean", "else {**change, 3: _NOTHING}", "else change"),
    M("sinks", "LayerNormalization: the bias is as large as the scale",
      "if bias is not None and op.constant(2) is None:", "if bias is not None:"),
    M("sinks", "LayerNormalization: data are as large as the scale", "need(full, Reason.BROADCAST",
      "need(True, Reason.BROADCAST"),
    M("plan", "a graph output on the way",
      "    if value.is_graph_output():\n        raise Declined(Reason.GRAPH_OUTPUT",
      "    if value is None:\n        raise Declined(Reason.GRAPH_OUTPUT"),
    M("plan", "other readers on the way",
      "        if other is not reader:\n            reason", "        if other is None:\n            reason"),
    M("plan", "what fails the measure is done",
      "if best is not None and best.gain < (0, 0, 0):", "if best is not None:"),
    M("plan", "a merge forgets the mean", "whole.shift + whole.scale * mean.exact()", "whole.shift"),
    M("plan", "a merge keeps the mean of other data",
      "found.batchnorm is not site.nodes[0] and", "False and"),
    M("plan", "constants are not checked", "        new.check(name)\n", ""),
    M("edit", "new names may be taken", "while name in taken:", "while name in ():"),
    M("edit", "names of the original come back", "if name not in self._originals:", "if name is not None:"),
    M("edit", "names that only the file has are free", "values |= source.unread", "values |= set()"),
    M("edit", "values on the way keep their names",
      "value.name = self.names.value(value.name, \"_folded\")\n        match", "pass\n        match"),
    M("edit", "legacy Add without its attributes", '[ir.AttrInt64("broadcast", 1)]', "[]"),
    M("edit", "a removed run forgets its Identity",
      "elif data.producer() is None or data.is_graph_output()", "elif data.is_graph_output()"),
    M("formulas", "an operand is taken for a detail", '"mul": 2', '"mul": 1'),
    M("enclosures", "a product drops nothing", "_GROW + _TINY, 0.0) + dropped", "_GROW + _TINY, 0.0)"),
    M("enclosures", "the ends of the range are trusted",
      "safe &= _in_range(q, self.hi) & _in_range(p, self.hi)", "pass"),
    M("enclosures", "a root is bounded from below only",
      "Fraction(low + 1, 1 << scale)", "Fraction(low, 1 << scale)"),
    M("tensors", "every epsilon is the usual one", "float(found[0].f) if found else _EPSILON", "_EPSILON"),
    M("tensors", "all is cast to float32", "return np.zeros(0, dtype)", "return np.zeros(0, np.float32)"),
    M("recompute", "a sum runs along another axis", "strides.pop(axis)", "strides.pop(0)"),
    M("recompute", "what is broadcast goes on", "[0 if n == 1 else stride for", "[stride for"),
    M("certificate", "one unit is near enough in float64", "sure = off <= 0.5 - slack", "sure = off <= 1.0"),
    M("certificate", "units below a power of two are as large in float64",
      "| (off <= 0.25 - slack)", "| True"),
    M("certificate", "units below a power of two are as large",
      "np.where(inward & self._is_power(v), 0.25 * ulp, 0.5 * ulp)", "0.5 * ulp"),
    M("certificate", "ties go to odd", '& 1 == 0', '& 1 == 1'),
    M("certificate", "what has no account passes", "lost |= {name", "{name"),
    M("nudge", "settings are moved", "if name in self._fixed:", "if False:"),
    M("nudge", "only the stored type counts",
      "max(unit(stored), self._coarse.get(name, 0.0))", "unit(stored)"),
    M("nudge", "u is twice the roundoff", ".eps) / 2", ".eps)"),
    M("nudge", "every draw is the same", "words = (*seed, zlib", "words = (zlib"),
    M("nudge", "all constants move alike", "zlib.crc32(name.encode()))", "0)"),
    M("nudge", "numbers of the same digits always move alike", "alike = seed[-1] % 2 == 0", "alike = True"),
    M("nudge", "all numbers always move by themselves", "alike = seed[-1] % 2 == 0", "alike = False"),
    M("nudge", "all blocks move alike",
      "_spread(_placed(part), *words, i)", "_spread(_placed(part), *words)"),
    M("nudge", "the coarsest reader counts", "min(some, default=0.0)", "max(some, default=0.0)"),
    M("nudge", "graph outputs are no readers",
      "names[value.name].units.append(0.0)", "pass"),
    M("nudge", "what depends on data is fixed as well", "if data.isdisjoint(some)", "if True"),
    M("nudge", "all sources of a decision are fixed, whatever their scope",
      "if value in found}", "if value.name in {other.name for other in found}}"),
    M("nudge", "decisions are moved", "if op_type in _DECIDING or to in _INTEGRAL:", "if to in _INTEGRAL:"),
    M("nudge", "casts to integers are moved",
      "if op_type in _DECIDING or to in _INTEGRAL:", "if op_type in _DECIDING:"),
    M("nudge", "functions are not looked into",
      "if key in self._functions and key not in calls:", "if False:"),
    M("nudge", "results of functions depend on nothing", "_link([names[name]], [result])", "pass"),
    M("nudge", "results of inner graphs depend on nothing",
      "read += [inner.get(value.name) for value in graph.output]", "pass"),
    M("nudge", "parameters of inner graphs depend on nothing",
      "results += [inner[value.name] for value in graph.input]", "pass"),
    M("nudge", "inner graphs see their own names alone",
      "names = around.new_child()", "names = ChainMap({})"),
    M("measure", "infinities are not looked at",
      "if count := int(np.count_nonzero(other)):", "if count := 0:"),
    M("measure", "only the whole tensor is measured", "return sums", 'return {"": sums[""]}'),
    M("measure", "parts are forgiven nothing",
      "chance = max(1.0, 2.0 * math.log(size.size))", "chance = 1.0"),
    M("measure", "parts have no share of the noise",
      "(noise + share * size + floor) * chance", "(noise + floor) * chance"),
    M("measure", "problems of later feeds are forgotten",
      "self.problem = self.problem or other.problem", "pass"),
    M("measure", "loud feeds drown quiet ones",
      "unit = max(whole / max(elements, 1), SMALLEST)", "unit = 1.0"),
    M("measure", "noise is summed over draws", "sums / len(each)", "sums"),
    M("measure", "rounding of means is evidence",
      "close = about < _CLOSE * squared", "close = about < 0.0"),
    M("algebra_gate", "nothing is handed on alone", "if base.exact or alone:", "if base.exact:"),
    M("algebra_gate", "nudged runs keep their decisions", "if hand_on or base.exact:", "if hand_on:"),
    M("algebra_gate", "Round is no decision", "node is not None and node.op_type in _JUMPING", "False"),
    M("algebra_gate", "every other decision is a tie",
      "if base.exact and self._is_tie(name, tallies):", "if base.exact:"),
    M("alike", "other opsets speak the same language", "return self._is_same_language and", "return"),
    M("alike", "captured values are not read",
      "names = names.union(*map(names_read, graph.node))", "pass"),
    M("algebra_gate", "stored constants are all alike",
      "if not self._alike.is_same_constant(current):", "if False:"),
    M("algebra_gate", "a lacking output is an open question",
      "if lacking and len(lacking) < len(found.outputs):", "if False:"),
    M("algebra_gate", "what was not compared passes", "for o in found.outputs if not o.decided]",
      "for o in found.outputs if False]"),
    M("algebra_gate", "nothing finite passes",
      "if not any(tally.finite for", "if False and not any(tally.finite for"),
    M("algebra_gate", "strays are handed on alone", "if not alone or name not in self._astray", "if True"),
    M("algebra_gate", "moved names are not recognised", "self._moved[name] = vanished", "pass"),
    M("algebra_gate", "a failing candidate is forgotten", "if other.failure:", "if False:"),
    M("algebra_gate", "limits judge nothing", "passed = not problem\n", "passed = True\n"),
    M("structure", "metadata do not count", "sorted(f\"{entry.key}={entry.value}\" for", "sorted(\"\" for"),
    M("verify", "no walk is alone", "_THROUGH, _ALONE = False, True", "_THROUGH, _ALONE = False, False"),
    M("verify", "other inputs are no matter", "if expected != found:", "if False:"),
    M("verify", "a certificate that fails is no matter",
      '("certificate: ", certificate)', '("certificate: ", None)'),
    M("verify", "onnxruntime is no matter", '("onnxruntime: ", runtime)', '("onnxruntime: ", None)'),
    M("pytorch/aliases", "inputs may be changed in place", "any(s.op in _GIVEN for s in touched)", "False"),
    M("pytorch/aliases", "nobody reads what was changed", "storages[place.node] & touched:", "False:"),
    M("pytorch/aliases", "edits share nothing new", "return {call for call, place in places.items() if",
      "return {call for call, place in places.items() if False and"),
    M("pytorch/axes", "a slice has the size of the whole", "len(range(size)[cut])", "size"),
    M("pytorch/calls", "a subclass is what its base is", "getattr(own, name) is getattr(kind, name)", "True"),
    M("pytorch/calls", "a replaced forward is no matter", '"forward" in vars(module) or', ""),
    M("pytorch/calls", "drawn numbers are constants",
      "return first.detach() if isinstance(second, torch.Tensor) and torch.equal(first, second) else None",
      "return first.detach()"),
    M("pytorch/calls", "a drawn weight is a constant", "and not torch.equal(tensor, getattr(module, name))",
      "and False"),
    M("pytorch/calls", "unknown code changes nothing", "or not _is_torchs(node.target):", "or False:"),
    M("pytorch/equal", "any gap is rounding", "if not gap <= _TOLERANCE", "if not gap >= 0 * _TOLERANCE"),
    M("pytorch/equal", "hooks run", "for hooks in (none, alone):", "for hooks in (alone,):"),
    M("pytorch/fold", "optional arguments are no matter", "if traced.optional:  # the code",
      "if False:  # the code"),
    M("pytorch/fold", "a module in training mode is changed", "if inplace and module.training:",
      "if False:"),
    M("pytorch/fold", "in place, code may change", "may_rewrite=not inplace", "may_rewrite=True"),
    M("pytorch/fold", "parts that others hold fold", "for name in names):", "for name in ()):"),
    M("pytorch/fold", "code does not look", "if is_noticed(", "if False and is_noticed("),
    M("pytorch/fold", "contexts are no matter", "and not traced.has_contexts", ""),
    M("pytorch/layers", "groups are forgotten", "group=groups,", ""),
    M("pytorch/layers", "padding is forgotten", "        pads=pads,\n        group", "        group"),
    M("pytorch/layers", "training mode is no matter", 'if a.get("training", False):', "if False:"),
    M("pytorch/layers", "epsilon is the default", 'epsilon = float(a.get("eps", 1e-5))', "epsilon = 1e-5"),
    M("pytorch/pointwise", "differences are sums", "return b.emit(op_type, operands",
      'return b.emit("Add", operands'),
    M("pytorch/reach", "items may be kept", "bool(reads) and all(id(n) in called for n in reads)",
      "bool(reads)"),
    M("pytorch/reach", "modules may be used twice", "if count == 1 and", "if"),
    M("pytorch/reach", "a result may have other readers", "first[0] == second[0] == _only_read",
      "first[0] == _only_read"),
    M("pytorch/reach", "decorators are no matter", 'if hasattr(member, "__wrapped__"):', "if False:"),
    M("pytorch/reach", "lists hold nothing", "elif not isinstance(value, torch.Tensor):", "elif False:"),
    M("pytorch/shadow", "sizes may contradict", "and here != there", "and False"),
    M("pytorch/surgery", "two calls of a module are one", "culprits |= {node, twin}", "pass"),
    M("pytorch/surgery", "weights are stored transposed", "array.T if slot.transposed else array", "array"),
    M("pytorch/surgery", "what is left over is lost", "nn.Identity() if not terms else",
      "nn.Identity() if True else"),
    M("pytorch/trace", "in place is not seen", "for _operator in IN_PLACE:", "for _operator in ():"),
    M("pytorch/trace", "hooks are traced", "yield path, f", "yield '', f"),
    M("pytorch/trace", "state is no matter", "if changed is not None:", "if False:"),
    M("pytorch/trace", "a refusal that was swallowed is none", "if tracer.refused is not None:", "if False:"),
    M("moments", "halves of a mean are not multiplied", "2.0 * high * low", "0.0 * high * low"),
    M("moments", "sizes do not weigh", 'self._sums["mean"].add(m, n)', 'self._sums["mean"].add(m)'),
    M("moments", "cancellation is no matter", "_CANCELS = 1e-4", "_CANCELS = -1e-4"),
    M("moments", "variance between samples is forgotten",
      "[w + b for w, b in zip(within, between, strict=True)]",
      "within"),
    M("moments", "limbs are cut off, not rounded into", "rest -= part", "rest -= part * (1 + 2.0**-40)"),
    M("moments", "the smallest limb is lost", "while k >= 0", "while k > 0"),
    M("moments", "merging forgets counts", "        self.count += other.count\n", ""),
    M("moments", "carries lose their sign", "self.limbs[k + 1] += self.limbs[k] >> _BITS",
      "self.limbs[k + 1] += abs(self.limbs[k]) >> _BITS"),
    M("moments", "rounded twice", "wide.view(np.int64)[lost] |= 1", "pass"),
    M("moments", "population for sample", "v * self.count / (self.count - 1)", "v * 1"),
    M("moments", "infinities are finite",
      "np.isfinite(self.mean + self.m2)", "~np.isnan(self.mean + self.m2)"),
    M("moments", "values are the samples", "max(self.samples - 1, 0)", "max(self.count - 1, 0)"),
    M("multiset", "shapes are no matter", "(part.dtype.str, part.shape)", "part.dtype.str"),
    M("multiset", "one sample hides another", "self.value += int", "self.value ^= int"),
    M("estimate", "the distance of means is no variance",
      "w * a + (1 - w) * b + d for", "w * a + (1 - w) * b for"),
    M("estimate", "a prior weighs by values", "self.prior + moments.samples", "self.prior + moments.count"),
    M("estimate", "gaps are compared with nothing", "limit_used=_worst(used)", "limit_used=0.0"),
    M("estimate", "log variances have no gap", "np.maximum(mean_gap / limits[0], var_gap / limits[1])",
      "mean_gap / limits[0]"),
    M("estimate", "float16 is float32", "_ROUNDINGS * (roundoff + smallest / width)", "_SMALL + 0 * width"),
    M("estimate", "outputs move by means only", "+ shift**2", "+ 0 * shift"),
    M("sketch", "what arrives is not drawn", "| arrived | sinks\n", "\n"),
    M("sketch", "the way is not drawn", "dict.fromkeys(part.way, Role.PASSES)", "{}"),
    M("sketch", "nothing goes", "dict.fromkeys(there - after.nodes.keys(), Role.GOES)", "{}"),
    M("sketch", "constants are drawn", "if v and i not in constants]", "if v]"),
    M("sketch", "the highest is the lowest", "(np.min, np.max)", "(np.min, np.min)"),
    M("structure", "functions do not count", "*(function.node for function in model.functions)", ""),
    M("structure", "half bytes are lost", "-(-n * width // 8)", "n * width // 8"),
    M("measure", "an edge belongs above", "ULP_EDGES, ulps)", 'ULP_EDGES, ulps, "right")'),
    M("sweep", "data may change", "if self._digest != (digest, samples):", "if False:"),
    M("sweep", "statistics are not settled", "                self.network.settle(i, settled[i])\n", ""),
    M("sweep", "too few samples pass", "samples < asked", "samples < 0"),
    M("sweep", "uncertain statistics pass", "_error(worst) > limit", "False"),
    M("sweep", "a failed proof passes", "off.limit_used > 1 and", "False and"),
    M("sweep", "a journal is not read", "if all(i in remembered for", "if False and all(i in remembered for"),
    M("sweep", "neighbours are not looked at", "all(final[i] == moments[i] for i in final)", "True"),
    M("samples", "samples keep their neighbours", "max(1, full // 2) if shifted and", "full if True or"),
    M("stages", "chance hides in functions", "(*self._before, *self._hidden)", "self._before"),
    M("sweep", "statistics beyond a type pass",
      "if not np.isfinite(numbers", "if False and not np.isfinite(numbers"),
    M("stages", "inner graphs read nothing", "read |= inside - made", "read |= set()"),
    M("stages", "dropout stays on", "del copy.input[2:]", "pass"),
    M("stages", "training mode stays", 'if a.name != "training_mode"]', "]"),
    M("stages", "later levels are earlier",
      "depth = max(read) + is_norm(node)", "depth = min(read) + is_norm(node)"),
    M("stages", "what is read later is lost",
      "if self._depths[name] <= level)", "if self._depths[name] == level)"),
    M("running", "equal constants are one", "len(value.uses()) == 1 and", ""),
    M("running", "twice is no matter", "if len(nodes) > 1), None)", "if len(nodes) > 9), None)"),
    M("running", "old statistics stay", "        _drop(value)\n\n\ndef _trains", "\n\ndef _trains"),
    M("running", "extra outputs may be used", "node.outputs[1:] if is_used(o)", "node.outputs[1:] if False"),
    M("network", "copies count", "found, layer = found.first(len(indices)), self.layers[i]",
      "found, layer = found, self.layers[i]"),
    M("network", "neighbours are no matter", "mixing = max(ranks.together(self._mixing))",
      "mixing = 0.0"),
    M("network", "copies are in one-pass batches", "padded=not batch_statistics", "padded=True"),
    M("network", "what is kept is not gone on with", "level - 1 == self._passed", "level == self._passed"),
    M("network", "the first sample is at fault", "int(np.argmin(found.finite))", "0"),
    M("journal", "any run's journal will do", "if key != self._key:", "if False:"),
    M("runtime", "what was kept stays", "return self._kept.pop(key, {})", "return self._kept.get(key, {})"),
    M("pytorch/windows", "any axes are positions", 'if a.get("dimensions") != len(dims) - 2:', "if False:"),
]
# fmt: on


def survives(mutant: Mutant) -> bool:
    """Whether the tests are green although the fault is there."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        _copy_into(copy)
        (copy / "bnfold" / f"{mutant.module}.py").write_text(
            mutant.source.replace(mutant.before, mutant.after)
        )
        return _are_green(copy, TESTS[mutant.module], SECONDS)


def _copy_into(folder: Path) -> None:
    for part in ("bnfold", "tests", "fixtures"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def _are_green(folder: Path, tests: Sequence[str], seconds: int | None = None) -> bool:
    """Run tests in a folder; what does not end is not green, and what is no failed test is no verdict."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += [f"tests/{test}.py" for test in tests]
    # The folder comes before an installed bnfold.
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return False
    if done.returncode not in (0, 1):
        raise RuntimeError(
            f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return done.returncode == 0


def main(word: str = "") -> int:
    chosen = [m for m in MUTANTS if word in m.module or word in m.what]
    outdated = [m for m in chosen if not m.is_current]
    for mutant in outdated:
        print(f"outdated   {mutant.module:<14} {mutant.what}: {mutant.before!r} is not there once")
    with tempfile.TemporaryDirectory() as folder:
        _copy_into(Path(folder))
        tests = sorted({test for mutant in chosen for test in TESTS[mutant.module]})
        if not _are_green(Path(folder), tests):
            print("the tests are red without any fault: mend that first")
            return 1
    planted = [m for m in chosen if m.is_current]
    survivors = 0
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for mutant, survived in zip(planted, pool.map(survives, planted), strict=True):
            survivors += survived
            print(
                f"{'SURVIVED' if survived else 'noticed':<10} {mutant.module:<14} {mutant.what}", flush=True
            )
    print(f"{len(planted) - survivors} of {len(planted)} faults noticed, {len(outdated)} outdated")
    return int(survivors > 0 or bool(outdated) or not chosen)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:2]))
