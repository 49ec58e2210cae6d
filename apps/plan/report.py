"""A plan as text."""

from __future__ import annotations

from dataclasses import asdict

from apps.plan.estimate import Assumptions, Fleet, Plan, plan, remedies
from apps.plan.shapes import shape_of
from research.markdown import markdown_table
from research.settings import Settings


def report(settings: Settings, trainer: Fleet, policy: Fleet, price: float | None = None) -> str:
    """The plan of a run as Markdown, with what does not fit and what would make it fit.

    Args:
        price: of one GPU for one hour, in any currency; None: no costs.

    Raises AssetError if the model is neither here nor known.
    """
    assumed = Assumptions()
    shape = shape_of(settings)
    made = plan(settings, shape, trainer, policy, assumed)
    lines = [
        f"# {settings.run}: {settings.model.name}, {made.parameters / 1e9:.2f} G parameters",
        "",
        f"Trainer on {trainer}, policy on {policy}. Estimated, not measured; the assumptions stand below.",
        "",
        "## Memory per GPU",
        "",
        _memory("trainer", made.trainer_memory, made.trainer_limit),
        "",
        _memory("policy", made.policy_memory, made.policy_limit),
        "",
        f"A policy server holds {made.concurrent} episodes at once (policy.max_num_seqs allows "
        f"{settings.policy.max_num_seqs}).",
        "",
        *_what_does_not_fit(settings, made, trainer, assumed),
        *(f"Rank 0 needs {size:.0f} GB of its host's memory for {part}." for part, size in made.host_memory.items()),
        "",
        "## Time",
        "",
        markdown_table(
            ("part of a step", "seconds"),
            [(part, f"{seconds:.0f}") for part, seconds in made.seconds.items()]
            + [("the longer of rollout and the rest" if made.overlapped else "all", f"{made.step_seconds:.0f}")],
        ),
        "",
        f"{made.tokens / 1e6:.1f} million tokens per step; {made.steps} steps take {made.hours:.1f} hours, without "
        "evaluations.",
        f"The retriever must bear {made.searches_per_second:.0f} searches per second, more at the start of a step.",
        "",
        "## Disk",
        "",
        markdown_table(("what", "GB"), [(what, f"{size:.0f}") for what, size in made.disk.items()]),
        "",
        *_costs(made, trainer, policy, price),
        "## Assumptions",
        "",
        "; ".join(f"{name} {value:g}" for name, value in asdict(assumed).items()) + " (apps/plan/estimate.py says what"
        " each is).",
    ]
    return "\n".join(lines)


def _memory(what: str, parts: dict[str, float], limit: float) -> str:
    total = sum(parts.values())
    rows = [(part, f"{size:.1f}") for part, size in parts.items()]
    rows += [("sum", f"{total:.1f}"), ("there is", f"{limit:.1f}")]
    return markdown_table((f"{what}, GB", ""), rows)


def _what_does_not_fit(settings: Settings, made: Plan, trainer: Fleet, assumed: Assumptions) -> list[str]:
    lines = []
    if not made.trainer_fits:
        shape = shape_of(settings)
        found = remedies(settings, shape, trainer, assumed)
        help_ = "; any of these would make it fit: " + ", ".join(found) if found else "; nothing tried makes it fit"
        lines.append(f"**The trainer does not fit**{help_}.")
    if not made.policy_fits:
        lines.append("**The policy does not fit**: raise policy.tensor_parallel_size, or take GPUs with more memory.")
    return [*lines, ""] if lines else []


def _costs(made: Plan, trainer: Fleet, policy: Fleet, price: float | None) -> list[str]:
    if price is None:
        return []
    gpus = trainer.count + policy.count
    return [f"At {price:g} per GPU and hour: {made.hours * gpus * price:.0f} for the run.", ""]
