"""Who trains the same network in benchmarks/qat_step.py: float, autoq with each of its quantizers, and its rivals.

float32               batch norms folded, eager, torch's default layout, torch.optim.Adam: as anybody would write it
float32-norms         the same with batch norms that train
float32-channels-last the same as float32, laid out as autoq lays out its networks
bfloat16              the same, in autocast
autoq                 autoq.training.qat.Training with the quantizer and clipping of a study's baselines
autoq-compiled        the same network by torch.compile, in the place of autoq's own ways on processors
autoq-NAME            the same with another quantizer for the roles that it serves, at the widest bits it has up to those asked for
brevitas              brevitas.nn: Int8WeightPerChannelFloat, Uint8ActPerTensorFloat for the image, Int8ActPerTensorFloat for the
                      rest and for sums, the widths those asked for; ranges calibrated first, so that no step gathers statistics
brevitas-channels-last the same, laid out as autoq lays out its networks
nncf                  nncf.quantize of the torch network, 8 bits, whose fake quantizers train
torchao               torchao's pt2e for QAT with the quantizer for x86, 8 bits
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import itertools
import logging
import math
import operator
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from autoq.config.policy import Policy, TensorQuant, uniform
from autoq.errors import InputError
from autoq.graph.trace import roles_by_stage
from autoq.images.data import batches, calibration_patches, make_pair, train_images
from autoq.networks import staged_model
from autoq.quantizers import QUANTIZERS
from autoq.system.compat import guest_code
from autoq.system.device import native_bfloat16
from autoq.training.qat import FULL_RATE_LOSS, LEARNING_RATE, LEARNING_RATES, Training
from autoq.trial.context import TrialContext
from autoq.tuning.baselines import BASELINE_QUANTIZER, baseline

NO_BFLOAT16 = "this processor has no native bfloat16: emulated, in no ratio"

IMAGE_BITS = 8


@dataclass(frozen=True)
class Given:
    """What everybody starts from: the bench's data, the float network as it is loaded and with its batch norms folded, and
    the widths of weights, activations and skips. calibration: patches [n, 3, side, side] that autoq finds its ranges with.
    """

    context: TrialContext
    loaded: nn.Module
    folded: nn.Module
    bits: str
    calibration: Sequence[Tensor]

    @property
    def widths(self) -> tuple[int, int, int]:
        """Of weights, activations and skips."""
        weight, activation, skip = map(int, self.bits.split("/"))
        return weight, activation, skip


class Steps(Protocol):
    """A training: `step` are done, `advance` goes on."""

    step: int

    def advance(self, until: int) -> None: ...


@dataclass(frozen=True)
class Contender:
    """build: of a training, from the float weights. modules: what it imports, and what to install for them."""

    build: Callable[[Given], Steps]
    modules: tuple[str, ...] = ()
    install: str = ""


def given(context: TrialContext, bits: str) -> Given:
    """The float network of a context."""
    spec = context.spec
    loaded, _ = staged_model(spec.model, spec.scale, spec.weights, dict(spec.layers))
    pairs = [make_pair(image, spec.scale) for image in train_images(spec.data)]
    return Given(context, loaded, folded(loaded), bits, list(calibration_patches(pairs, spec.seed)))


def folded(network: nn.Module) -> nn.Module:
    """A copy with batch norms folded into the convolutions before them; nn.Identity stands in their place."""
    network = copy.deepcopy(network).eval()
    modules = dict(network.named_modules())
    for node in fx.symbolic_trace(network).graph.nodes:
        if isinstance(modules.get(str(node.target)), nn.BatchNorm2d):
            before = str(node.args[0].target)
            network.set_submodule(before, fuse_conv_bn_eval(modules[before], modules[node.target]))
            network.set_submodule(node.target, nn.Identity())
    return network


class PlainTraining:
    """What autoq's own Training does, for any network: its patches, loss, rates and schedule, Adam as torch has it by default."""

    def __init__(self, context: TrialContext, network: nn.Module, layout: torch.memory_format, bfloat16: bool = False) -> None:
        self.context, self.layout, self.bfloat16 = context, layout, bfloat16
        self.network = network.to(memory_format=layout)  # type: ignore[call-overload]  # torch's stubs lack it
        parameters: dict[float, list[nn.Parameter]] = {}
        for name, parameter in network.named_parameters():
            parameters.setdefault(LEARNING_RATES.get(name.rpartition(".")[2], LEARNING_RATE), []).append(parameter)
        self.rates = list(parameters)
        self.optimizer = torch.optim.Adam([{"params": group} for group in parameters.values()])
        self.step, self.damping = 0, 1.0

    def advance(self, until: int) -> None:
        """Train on to step `until`."""
        steps = self.context.spec.steps
        for indices in itertools.islice(batches(self.context.plan, until), self.step, None):
            chosen = torch.from_numpy(indices)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
                outputs = self.network(self.context.patches[chosen].contiguous(memory_format=self.layout))
            loss = nn.functional.l1_loss(outputs.float(), self.context.teacher[chosen])
            if self.step == 0:
                self.damping = min(1.0, loss.item() / FULL_RATE_LOSS)
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * self.damping * 0.5 * (1 + math.cos(math.pi * self.step / steps))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1


# ---------------------------------------------------------------- float and autoq


def _float(start: Given, norms: bool = False, last: bool = False, bfloat16: bool = False) -> Steps:
    network = copy.deepcopy(start.loaded if norms else start.folded).train().requires_grad_(True)
    return PlainTraining(start.context, network, torch.channels_last if last else torch.contiguous_format, bfloat16)


def _own(quantizer: str, start: Given) -> Training:
    context = start.context
    return Training(context, context.quantized(own_policy(start, quantizer)))


def _compiled(start: Given) -> Steps:
    training = _own(BASELINE_QUANTIZER, start)
    training.network = torch.compile(training.module)  # type: ignore[assignment]  # a function to torch's stubs, and a module
    return training


def own_policy(start: Given, quantizer: str = BASELINE_QUANTIZER) -> Policy:
    """The widths asked for, with a quantizer where it serves and the baselines' elsewhere."""
    stages = roles_by_stage(start.context.traced.sites)
    policy = baseline(uniform(start.bits, stages, BASELINE_QUANTIZER))
    return policy.mapped(lambda role, quant: _served(quant, role, quantizer, start))


def _served(quant: TensorQuant, role: str, quantizer: str, start: Given) -> TensorQuant:
    """A format with that quantizer, or as it is."""
    info = QUANTIZERS[quantizer]
    if info.unfit(role, quant.signed):
        return quant
    integers = start.context.execution.integer_bits
    widths = [bits for bits in info.bits if bits <= quant.bits and not info.no_width(bits, role, integers)]
    return replace(quant, quantizer=quantizer, bits=max(widths)) if widths else quant


# ---------------------------------------------------------------- rivals


def _brevitas(start: Given, last: bool = False) -> Steps:
    from brevitas.graph.calibrate import calibration_mode

    network = brevitas_network(start.folded, start.widths).train()
    with torch.no_grad(), calibration_mode(network):
        for patches in start.calibration:
            network(patches)
    return PlainTraining(start.context, network, torch.channels_last if last else torch.contiguous_format)


def brevitas_network(network: nn.Module, widths: tuple[int, int, int]) -> fx.GraphModule:
    """Brevitas's layers and quantizers where autoq has its own: weights, the image, inputs of layers, sums and their operands.

    The operand of a sum that a convolution makes is not rounded: integer runtimes add it in the layer's accumulators.
    """
    import brevitas.nn as qnn
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat, Uint8ActPerTensorFloat

    weight, activation, skip = widths
    module = fx.symbolic_trace(copy.deepcopy(network))
    kinds = {node: _kind(module, node) for node in module.graph.nodes}
    for node in [node for node, kind in kinds.items() if kind is nn.Identity]:
        node.replace_all_uses_with(node.args[0])
        module.graph.erase_node(node)
        del kinds[node]
    for node, kind in kinds.items():
        if kind is nn.Conv2d:
            conv = _quant_conv(module.get_submodule(node.target), qnn, Int8WeightPerChannelFloat, weight)
            module.set_submodule(node.target, conv)
        image = node.op == "placeholder"
        rule = Uint8ActPerTensorFloat if image else Int8ActPerTensorFloat
        users, source = list(node.users), node
        if kind is operator.add:
            source = _insert(module, node, users, qnn.QuantIdentity(rule, bit_width=skip))
        by_width: dict[int, list[fx.Node]] = {}
        for user in users:
            if kinds[user] is nn.Conv2d:
                by_width.setdefault(IMAGE_BITS if image else activation, []).append(user)
            elif kinds[user] is operator.add and kind is not nn.Conv2d:
                by_width.setdefault(skip, []).append(user)
        for width, readers in by_width.items():
            if kind is not operator.add or width != skip:
                _insert(module, source, readers, qnn.QuantIdentity(rule, bit_width=width))
    module.recompile()
    return module


def _kind(module: fx.GraphModule, node: fx.Node) -> Any:
    """The class of the module that a node calls, or its function."""
    return type(module.get_submodule(str(node.target))) if node.op == "call_module" else node.target


def _insert(module: fx.GraphModule, source: fx.Node, readers: Sequence[fx.Node], quantizer: nn.Module) -> fx.Node:
    """Let these readers of a tensor read it through a quantizer."""
    path = f"quantizer_{len(list(module.children()))}"
    module.add_submodule(path, quantizer)
    with module.graph.inserting_after(source):
        node = module.graph.call_module(path, (source,))
    for reader in readers:
        reader.replace_input_with(source, node)
    return node


def _quant_conv(conv: nn.Module, qnn: Any, rule: type, bits: int) -> nn.Module:
    """A convolution of Brevitas's with the same parameters."""
    assert isinstance(conv, nn.Conv2d)
    own = qnn.QuantConv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups,
        bias=conv.bias is not None, weight_quant=rule, weight_bit_width=bits,
    )  # fmt: skip
    own.load_state_dict(conv.state_dict(), strict=False)
    return own


@guest_code()  # NNCF writes to standard output
def _nncf(start: Given) -> Steps:
    # its kernels are compiled when they are first used, which on a busy machine takes longer than it waits by default
    os.environ.setdefault("NNCF_EXTENSION_LOAD_TIMEOUT", "0")
    import nncf

    nncf.set_log_level(logging.ERROR)
    patches = nncf.Dataset([part for batch in start.calibration for part in batch.split(1)])
    network = nncf.quantize(copy.deepcopy(start.folded), patches, target_device=nncf.TargetDevice.CPU)
    for parameter in network.train().parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return PlainTraining(start.context, network, torch.contiguous_format)


def _torchao(start: Given) -> Steps:
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    rules = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config(is_qat=True))
    example = start.context.patches[: start.context.spec.batch]
    exported = torch.export.export(copy.deepcopy(start.folded).requires_grad_(True), (example,)).module()
    return PlainTraining(start.context, prepare_qat_pt2e(exported, rules), torch.contiguous_format)


# ---------------------------------------------------------------- all of them

BREVITAS = (("brevitas.nn", "brevitas.quant", "brevitas.graph.calibrate"), "brevitas==0.13.4")

OWN = {"autoq" if name == BASELINE_QUANTIZER else f"autoq-{name}": Contender(partial(_own, name)) for name in QUANTIZERS}

CONTENDERS: dict[str, Contender] = {
    "float32": Contender(_float),
    "float32-norms": Contender(partial(_float, norms=True)),
    "float32-channels-last": Contender(partial(_float, last=True)),
    "bfloat16": Contender(partial(_float, last=True, bfloat16=True)),
    **dict(sorted(OWN.items(), key=lambda entry: entry[0] != "autoq")),
    "autoq-compiled": Contender(_compiled),
    "brevitas": Contender(_brevitas, *BREVITAS),
    "brevitas-channels-last": Contender(partial(_brevitas, last=True), *BREVITAS),
    "nncf": Contender(_nncf, ("nncf", "nncf.torch"), "nncf==3.4.0"),
    "torchao": Contender(_torchao, ("torchao.quantization.pt2e.quantize_pt2e",), "torchao==0.18.0"),
}


def load(names: Sequence[str]) -> None:
    """Import what these need. Raises InputError that names what to install."""
    for name in names:
        contender = CONTENDERS[name]
        try:
            with contextlib.redirect_stdout(sys.stderr):
                for module in contender.modules:
                    importlib.import_module(module)
        except ImportError as error:
            others = " ".join(other for other in CONTENDERS if CONTENDERS[other].install != contender.install)
            raise InputError(
                f"rival '{name}': {error}; run pip install -c constraints.txt {contender.install}, or leave it out: --only {others}"
            ) from error


def remark(name: str) -> str:
    """Why a contender's figure is not held against others; empty where it is."""
    return NO_BFLOAT16 if name == "bfloat16" and not native_bfloat16("cpu") else ""
