"""The sampling loop as two files that leave this program, by torch.export or as ONNX: an encoder, and the loop.

    encoder   tensors of one scene -> its context, once per scene
    loop      that context, omega and start noise -> plans: all solver steps, with guidance

Times and coefficients of the solver are numbers in the loop, fixed before it is traced (`solvers.step_table`); so are
the number of plans and of steps and the way of guidance. omega is an input: both roles are asked whatever it is.
Checked after writing: the files are read again and run, and must give the policy's own plans on other scenes, other
noise and several omegas.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from dipole_vla.backbones.base import Context
from dipole_vla.export.inputs import PLANS, described, noise_of, observation_of, prompt, settings
from dipole_vla.guidance import Moment, PredictGuided, Role, moment_of
from dipole_vla.objective import rule_named
from dipole_vla.policy import AdapterPair, EncodedScenes, GuidedPolicy
from dipole_vla.policy.separate import SeparatePair
from dipole_vla.progress import console
from dipole_vla.solvers import Step, step_table, walk
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import atomic_path, write_json

Format = Literal["program", "onnx"]
Run = Callable[[Sequence[Tensor]], list[Tensor]]
"""A written file: its inputs in order -> its outputs."""

ABOUT = "loop.json"
FILES: dict[str, tuple[str, str]] = {
    "program": ("encoder.pt2", "loop.pt2"),
    "onnx": ("encoder.onnx", "loop.onnx"),
}
PACKAGES: dict[str, tuple[str, ...]] = {"program": ("torch",), "onnx": ("torch", "onnx", "onnxscript", "onnxruntime")}
TOLERANCE_M = 1e-4  # of plans tens of metres long, in float32
NUDGE = 1e-6  # a policy whose own plans move further than that if the noise changes by this share is allowed as much
OMEGAS = (-1.0, 0.0, 1.0, 2.0)  # with which a written loop is run, and one for each plan
LARGE = 1 << 30  # bytes of weights from which they lie beside an .onnx file, which itself can hold 2 GiB


class Encoder(nn.Module):
    """Tensors of one scene in the order of `names` -> those of its context in the order of `outputs`.

    outputs: their names, "context.NAME", or "ROLE.NAME" where each role has a context of its own.
    """

    def __init__(self, policy: GuidedPolicy, observation: dict[str, Tensor]) -> None:
        super().__init__()
        self.networks = _networks(policy)
        self._policy, self.names = [policy], list(observation)
        pair = policy.pair
        self.roles: tuple[Role, ...] = (None,) if pair is None or pair.shares_context else policy.roles
        alone = "context" if len(self.roles) == 1 else "base"
        contexts = self._contexts(policy.encode(observation))
        self.keys = list(contexts[0].tensors)
        self.outputs = [f"{role or alone}.{key}" for role in self.roles for key in self.keys]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        (policy,) = self._policy
        scenes = policy.encode(dict(zip(self.names, tensors)))
        return tuple(tensor.clone() for context in self._contexts(scenes) for tensor in context.tensors.values())

    def _contexts(self, scenes: EncodedScenes) -> list[Context]:
        return [scenes.encoded(role) for role in self.roles]

    def scenes(self, tensors: Sequence[Tensor]) -> EncodedScenes:
        """What `forward` gave, to sample from."""
        (policy,) = self._policy
        each = len(self.keys)
        contexts = {
            role: Context(dict(zip(self.keys, tensors[each * index :]))) for index, role in enumerate(self.roles)
        }
        return policy.encoded(contexts if len(self.roles) > 1 else contexts[None])


class Loop(nn.Module):
    """(context as the encoder gives it, omega, noise) -> plans (1, N, horizon, 3).

    omega: (N,), or (1,) for a distilled network, which is put together for one omega. noise: (1, N, horizon, dim).
    """

    def __init__(self, policy: GuidedPolicy, encoder: Encoder, noise: Tensor, steps: int | None) -> None:
        super().__init__()
        self.networks = _networks(policy)
        self._policy, self._encoder = [policy], [encoder]  # in lists: not submodules a second time
        self.combination = policy.combination(None)
        self.solver = policy.solver(self.combination, steps)
        if self.solver.eta or self.solver.std_floor:
            raise InputError(
                "solver: draws fresh noise at each step (eta, std_floor), which a file cannot draw as the policy does; "
                "set both to 0 in the backbone's config.json"
            )
        backbone = policy.backbone
        self.steps = [
            Step(_short(moment_of(backbone.schedule, backbone.prediction, step.t[None], noise)), step.numbers)
            for step in step_table(self.solver, backbone.schedule, noise.device)
        ]
        self.candidates = noise.shape[1]
        self.omegas = self.candidates if policy.distilled is None else 1

    def forward(self, *tensors: Tensor) -> Tensor:
        *context, omega, noise = tensors
        (policy,), (encoder,) = self._policy, self._encoder
        scenes = encoder.scenes(context)
        omega = omega * rule_named(policy.guidance.rule).greed
        estimate = policy.estimator(scenes, omega, self.combination, self._distilled(policy, scenes, omega))
        action = walk(self.solver, self.steps, estimate, noise.flatten(0, 1))
        return policy.backbone.to_raw(action.unflatten(0, noise.shape[:2]), scenes.any_role)

    @staticmethod
    def _distilled(policy: GuidedPolicy, scenes: EncodedScenes, omega: Tensor) -> PredictGuided | None:
        if policy.distilled is None:
            return None
        network = policy.distilled.at(omega)
        prepared = network.prepare(scenes.encoded(None))
        return lambda x_t, t: network.denoise(prepared, x_t, t)


def _networks(policy: GuidedPolicy) -> nn.ModuleList:
    """All modules with weights that the policy computes with: what is not among them is a constant at each use."""
    pair, distilled = policy.pair, policy.distilled
    found: list[nn.Module] = [*pair.views.values()] if isinstance(pair, SeparatePair) else [policy.backbone]
    return nn.ModuleList(found if distilled is None else [*found, distilled.corrections])


def _short(moment: Moment) -> Moment:
    """With coefficients in float32, to which they would be rounded at each step."""
    if moment.parts is None:
        return moment
    of_x, of_output = moment.parts
    return replace(moment, parts=(of_x.float(), of_output.float()))


def check_packages(format: str) -> dict[str, str]:
    """Versions of the packages that writing takes; InputError where one is missing, whatever the format."""
    try:
        return {name: importlib.import_module(name).__version__ for name in PACKAGES.get(format, ())}
    except ModuleNotFoundError as problem:
        raise InputError(
            f"--format {format}: needs the package {problem.name}; pip install 'dipole-vla[onnx]'"
        ) from problem


def write_loop(
    policy: GuidedPolicy,
    out: Path,
    format: Format,
    candidates: int = 1,
    steps: int | None = None,
    seed: int = 0,
    observations: Sequence[dict[str, Tensor]] = (),
) -> dict[str, Any]:
    """Write both files and `loop.json`, read them again, run them, compare; returns what `loop.json` says.

    observations: two of one scene each, to trace with and to compare on, of the same shapes; by default made-up scenes
        through the family's own processor. A network of your own (`dipole.policy`) has none and needs them.
    InputError if the policy cannot be traced, or if the files give other plans.
    """
    versions = check_packages(format)
    policy.backbone.requires_grad_(False)
    example, *others = observations or (observation_of(policy), observation_of(policy, seed + 1))
    noise = noise_of(policy, candidates, seed)
    policy.sample(example, 1.0, candidates, noise, steps=1 if steps is None else steps)  # what the first pass settles
    if isinstance(policy.pair, AdapterPair) and policy.pair.mixes_rows is None:
        raise InputError("policy: its two signs predict the same, so nothing is guided; train it first")
    with torch.no_grad():
        encoder = Encoder(policy, example).eval()
        loop = Loop(policy, encoder, noise, steps).eval()
        context = encoder(*example.values())
        omega = torch.ones(loop.omegas, device=policy.device)
        signatures = [
            ((*example.values(),), encoder.names, encoder.outputs),
            ((*context, omega, noise), [*encoder.outputs, "omega", "noise"], ["plans"]),
        ]
        paths = [out / name for name in FILES[format]]
        for module, path, (inputs, names, outputs) in zip((encoder, loop), paths, signatures):
            console.print(f"export {format}: tracing {path.name}", markup=False)
            with _refused(policy, format):
                WRITERS[format](module, inputs, path, names, outputs)
        console.print(f"export {format}: reading them again, comparing their plans with the policy's")
        with _refused(policy, format):
            runs = [READERS[format](path) for path in paths]
            apart, rounding = _apart(policy, loop, runs, others, seed)
    if not apart <= rounding:
        raise InputError(
            f"{paths[1]}: gives plans {apart:.3g} m off the policy's (at most {rounding:.3g} m is rounding); "
            f"the family {policy.backbone.family!r} decides by data somewhere and cannot be traced"
        )
    about = {
        "format": format,
        "device": policy.device.type,
        "files": _files(paths, signatures, others[0], policy),
        "omega": policy.guidance.omega,  # the policy's own, to feed where nothing else is wanted
        "candidates": candidates,
        "steps": loop.solver.steps,
        "critic": False,  # all plans come out, none is chosen
        "interval_s": getattr(policy.backbone.action, "interval", None),
        "versions": versions,
        "policy_fingerprint": policy.fingerprint,
        "difference_m": apart,
        "allowed_m": rounding,
    }
    if format == "onnx":
        about["opset"] = _opset(paths[1])
    if not observations:
        about |= {"processor": settings(policy.processor), "prompt": prompt(policy.processor, dict(others[0]))}
        policy.backbone.save_assets(out)
    write_json(out / ABOUT, about)
    return about


def _apart(
    policy: GuidedPolicy, loop: Loop, runs: Sequence[Run], others: Sequence[dict[str, Tensor]], seed: int
) -> tuple[float, float]:
    """Largest difference of the written files' plans from the policy's, m, and the largest that rounding explains."""
    encode, sample = runs
    mixed = torch.linspace(OMEGAS[0], OMEGAS[-1], loop.omegas)
    found, sways = [], []
    for scene, observation in enumerate(others):
        context = encode([*observation.values()])
        noise = noise_of(policy, loop.candidates, seed + 1 + scene)
        for omega in (*(torch.full((loop.omegas,), value) for value in OMEGAS), mixed):
            asked = omega if policy.distilled is not None else omega[None]
            own = partial(policy.sample, observation, asked, loop.candidates, steps=loop.solver.steps)
            wanted = own(noise=noise)
            (plans,) = sample([*context, omega.to(noise), noise])
            found.append((plans.to(wanted) - wanted).abs().max())
            sways.append((own(noise=noise * (1 + NUDGE)) - wanted).abs().max())
    return float(torch.stack(found).max()), max(TOLERANCE_M, float(torch.stack(sways).max()))


def _write_program(module: nn.Module, inputs: tuple[Tensor, ...], path: Path, *names: Sequence[str]) -> None:
    with atomic_path(path) as aside, open(aside, "wb") as file:
        torch.export.save(_exported(module, inputs), file)


def _exported(module: nn.Module, inputs: tuple[Tensor, ...]) -> ExportedProgram:
    """Traced, without the weights that it does not use, which are the other file's."""
    found = torch.export.export(module, inputs)
    nodes = [node for node in found.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(nodes, list(found.graph_signature.input_specs)):
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and not node.users:
            found.graph.erase_node(node)
            found.graph_signature.input_specs.remove(spec)
            found.state_dict.pop(spec.target, None)
            found.constants.pop(spec.target, None)  # a buffer that is not saved
    for node in found.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    found.graph_module.recompile()
    return found


def _write_onnx(
    module: nn.Module, inputs: tuple[Tensor, ...], path: Path, names: Sequence[str], outputs: Sequence[str]
) -> None:
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    program = torch.onnx.export(
        _exported(module, inputs),
        input_names=names,
        output_names=outputs,
        dynamo=True,
        verbose=False,
        optimize=False,  # a runtime does that itself, in a fraction of the time
    )
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)  # paths of this machine
    weights = [value.const_value for value in program.model.graph.initializers.values()]
    if sum(tensor.nbytes for tensor in weights if tensor is not None) >= LARGE:
        program.save(path, external_data=True)
        return
    with atomic_path(path) as aside:
        program.save(aside, external_data=False)


def _read_program(path: Path) -> Run:
    module = torch.export.load(path).module()
    return lambda tensors: _listed(module(*tensors))


def _listed(output: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)


def _read_onnx(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(tensors: Sequence[Tensor]) -> list[Tensor]:
        feeds = {name: tensor.contiguous().numpy() for name, tensor in zip(names, tensors)}
        return [torch.from_numpy(output) for output in session.run(None, feeds)]

    return run


WRITERS: dict[str, Callable[..., None]] = {"program": _write_program, "onnx": _write_onnx}
READERS: dict[str, Callable[[Path], Run]] = {"program": _read_program, "onnx": _read_onnx}


@contextmanager
def _refused(policy: GuidedPolicy, format: str) -> Iterator[None]:
    """InputError with the first line of what torch or onnxruntime says, instead of a traceback through them."""
    logs = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [log.level for log in logs]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of adapters and tables that are constants, and constants they are
            for log in logs:
                log.setLevel(logging.ERROR)
            yield
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as problem:
        first: BaseException = problem
        while first.__cause__ is not None:  # the outer ones tell how to report it to torch
            first = first.__cause__
        said = " ".join(next((line for line in str(first).splitlines() if line.strip()), repr(first)).split())
        raise InputError(
            f"--format {format}: the family {policy.backbone.family!r} cannot be written so "
            f"({type(first).__name__}: {said[:200]}); use --format torchscript"
        ) from problem
    finally:
        for log, level in zip(logs, levels):
            log.setLevel(level)


def _files(
    paths: Sequence[Path], signatures: Sequence[Any], observation: dict[str, Tensor], policy: GuidedPolicy
) -> list[dict[str, Any]]:
    """Of both files their inputs and outputs in order, made without this program."""
    (_, _, context_names), (loop_inputs, _, _) = signatures
    context = [_fact(name, tensor, "from the encoder", "none") for name, tensor in zip(context_names, loop_inputs)]
    *_, omega, noise = loop_inputs
    greed = "greed: -1 the negative policy, 0 the positive one, above 0 greedier; one for each plan"
    if policy.distilled is not None:
        greed = greed.replace("for each plan", "for all plans")
    own = [_fact("omega", omega, greed, "none"), _plain(described("noise", noise))]
    plans = {"name": "plans", "shape": [*noise.shape[:2], *policy.backbone.action.raw_shape], "dtype": "float32"}
    meaning = PLANS if hasattr(policy.backbone.action, "interval") else "actions in raw units"
    encoder, loop = paths
    return [
        {
            "file": encoder.name,
            "inputs": [_plain(described(*each)) for each in observation.items()],
            "outputs": context,
        },
        {"file": loop.name, "inputs": [*context, *own], "outputs": [{**plans, "meaning": meaning}]},
    ]


def _fact(name: str, tensor: Tensor, meaning: str, unit: str) -> dict[str, Any]:
    facts = {"name": name, "shape": list(tensor.shape), "dtype": str(tensor.dtype), "unit": unit, "meaning": meaning}
    return _plain(facts)


def _plain(fact: dict[str, Any]) -> dict[str, Any]:
    """With the dtype in numpy's words."""
    return {**fact, "dtype": fact["dtype"].removeprefix("torch.")}


def _opset(path: Path) -> int:
    import onnx

    found = onnx.load(path, load_external_data=False).opset_import
    return next(each.version for each in found if each.domain in ("", "ai.onnx"))
