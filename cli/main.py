"""The program `research`: one command per task."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

from apps.audit.commands import audit
from apps.bench.commands import bench, corpus, report
from apps.options import Overrides, Preset, console, passed_on
from apps.plan.commands import plan
from apps.study.commands import study
from cli.index import index
from research.config import DEFAULT_PRESET, load_settings
from research.descriptors import raise_limit
from research.episode.agent import StopReason
from research.errors import ResearchError
from research.schemas import StrategyName
from services.process import stopping
from services.process.terminal import escape_control_chars

app = typer.Typer(
    help="Teach a language model to reason with search, by reinforcement learning.\n\n"
    "Almost every command takes a preset (a name such as quickstart-cpu, or the path of a TOML file) and settings such "
    "as grpo.steps=5 that override it. `research config --describe` explains every setting.\n\n"
    "Start with: `research demo`",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
errors = Console(stderr=True)


@app.command()
def prepare(overrides: Overrides = None, preset: Preset = DEFAULT_PRESET) -> None:
    """Build everything that the services need on disk: model, encoder, passages, index and questions.

    Run it once per machine, or after changing a model, the corpus or the index; whatever exists already is kept.
    `research demo`, `research up` and `research study` call it themselves.

    Example: `research prepare`
    """
    from builtin.prepare import KEPT
    from builtin.prepare import prepare as run

    with stopping.keeping(lambda: KEPT):
        run(load_settings(preset, overrides), console)


app.command()(index)


@app.command()
def serve(
    service: Annotated[Literal["retriever", "policy", "trainer"], typer.Argument(help="which service")],
    overrides: Overrides = None,
    preset: Preset = DEFAULT_PRESET,
    watch: Annotated[bool, typer.Option("--watch", help="end it with an error if /livez fails for a minute")] = False,
) -> None:
    """Run one service in the foreground: retriever, policy or trainer.

    Use it to spread the services over machines, or to restart one alone; `research up` runs all three on this one. With
    `--watch` it ends when it hangs: for containers without a liveness probe, which are restarted when they end.

    Example: `research serve retriever retriever.port=9000`
    """
    from services.process.parent import end_with_parent

    end_with_parent()
    settings = load_settings(preset, overrides)
    if watch:
        from services.system.watched import serve_watched

        serve_watched(service, passed_on(preset, overrides), settings)
    if service == "retriever":
        from services.retriever.main import serve as run
    elif service == "policy":
        from services.policy.main import serve as run
    else:
        from services.trainer.main import serve as run
        from services.trainer.processes import start_processes

        start_processes(settings)
    run(settings)


@app.command()
def up(overrides: Overrides = None, preset: Preset = DEFAULT_PRESET) -> None:
    """Run retriever, policy and trainer side by side until Ctrl-C; a service that dies is restarted.

    Use it to train and ask at the same time: the policy serves the weights that the run has published so far, and a
    page to ask from. Train with `research run start`, then ask with `research ask "Who painted The Starry Night?"`.

    Example: `research up`
    """
    from builtin.prepare import prepare as prepare_all
    from services.system.launcher import require_startable, running
    from services.system.programs import Service

    settings = load_settings(preset, overrides)
    everything: tuple[Service, ...] = ("retriever", "policy", "trainer")
    require_startable(everything, settings)
    with stopping.keeping(lambda: "the services have ended; `research up` restarts them and continues an active run"):
        prepare_all(settings, console)
        with running(everything, passed_on(preset, overrides), settings, console):
            ask = f"http://{settings.policy.host}:{settings.policy.port}/"
            console.print(f"all three services are up; ask at {ask}; Ctrl-C ends them", highlight=False, soft_wrap=True)
            threading.Event().wait()


@app.command()
def run(
    order: Annotated[Literal["start", "pause", "stop", "status"], typer.Argument(help="what to tell the trainer")],
    overrides: Overrides = None,
    preset: Preset = DEFAULT_PRESET,
) -> None:
    """Start, pause or stop the run of a running trainer, or print the state of the run.

    Use it after `research up` or compose; `research train` needs no trainer service. `start` also continues a paused or
    stopped run. `pause` and `stop` wait for the end of the current step.

    Example: `research run start`
    """
    from cli.run_commands import give_order

    give_order(load_settings(preset, overrides), order, console)


@app.command()
def train(
    overrides: Overrides = None,
    preset: Preset = DEFAULT_PRESET,
    fresh: Annotated[bool, typer.Option("--fresh", help="delete what the run directory holds, and start over")] = False,
) -> None:
    """Train in this terminal, against a running retriever and policy.

    Use it for a run with your own settings. It continues from the last checkpoint if there is one. The policy server
    must have been started with the same RESEARCH_ADMIN_TOKEN.

    Example: `research train run=first grpo.steps=20`
    """
    from services.trainer.main import train as run
    from services.trainer.processes import start_processes

    settings = load_settings(preset, overrides)
    start_processes(settings)
    run(settings, fresh=fresh, console=console)


app.command()(plan)
app.command()(audit)


@app.command()
def demo(overrides: Overrides = None, preset: Preset = DEFAULT_PRESET) -> None:
    """Run every stage once: prepare, serve, train with GRPO, reload weights, evaluate, answer a question.

    Start here. It takes at most 20 minutes, with fewer episodes where the machine is slow. An interrupted demo
    continues where it was; a finished one starts over.

    Example: `research demo`
    """
    from cli.demo import run_demo

    run_demo(load_settings(preset, overrides), preset, passed_on(preset, overrides), console)


app.command()(study)


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="the question, in quotes")],
    overrides: Overrides = None,
    preset: Preset = DEFAULT_PRESET,
    strategy: Annotated[StrategyName, typer.Option(help="how to find the answer")] = "research",
    as_json: Annotated[bool, typer.Option("--json", help="print the whole answer as JSON")] = False,
) -> None:
    """Ask the running policy one question, and show each step to the answer.

    Use it to try the model that `research up` serves, or to compare the agent (`research`) with a simpler strategy.

    Example: `research ask "When was the painter of The Starry Night born?" --strategy naive-rag`
    """
    from cli.ask import ask_policy
    from cli.show import show_answer

    answer = ask_policy(load_settings(preset, overrides), question, strategy)
    if as_json:
        print(answer.model_dump_json(indent=2))
    else:
        show_answer(answer, console)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="the name of a run, or its directory")],
    out: Annotated[Path, typer.Option(help="the directory to create")],
    push: Annotated[str, typer.Option(help="also push to this repository of the model hub (needs HF_TOKEN)")] = "",
    overrides: Overrides = None,
    preset: Preset = DEFAULT_PRESET,
) -> None:
    """Write a run's newest weights as an ordinary checkpoint, with a model card.

    Use it to share a trained model, or to load it with transformers or `vllm serve`.

    Example: `research export demo --out my-search-agent`
    """
    from apps.export.export import export_run, push_to_hub

    runs = load_settings(preset, overrides).paths.runs
    target = export_run(runs / run if (runs / run).is_dir() else Path(run).expanduser(), out)
    console.print(f"exported: {target}", highlight=False, soft_wrap=True)
    if push:
        console.print(f"pushed: {push_to_hub(target, push)}", highlight=False, soft_wrap=True)


@app.command("eval")
def evaluate(
    overrides: Overrides = None,
    preset: Preset = DEFAULT_PRESET,
    output: Annotated[Path | None, typer.Option(help="also write every episode to this JSONL file")] = None,
) -> None:
    """Ask the running policy the held-out questions, greedily, and print EM and F1.

    Use it to measure the weights that are served now; needs a running retriever and policy (`research up`).

    Example: `research eval evaluation.per_kind=100`
    """
    from cli.evaluate import evaluate_policy

    with stopping.keeping(lambda: "an unfinished evaluation keeps nothing"):
        stopping.run(evaluate_policy(load_settings(preset, overrides), output, console))


for command in (corpus, bench, report):
    app.command()(command)


@app.command()
def inspect(
    run: Annotated[str, typer.Argument(help="the name of a run, or its directory")],
    overrides: Overrides = None,
    preset: Preset = DEFAULT_PRESET,
    step: Annotated[list[int] | None, typer.Option(help="episodes of this training step (may be repeated)")] = None,
    evaluation: Annotated[
        list[str] | None, typer.Option("--eval", help="episodes of this evaluation, e.g. after (may be repeated)")
    ] = None,
    group: Annotated[str | None, typer.Option(help="episodes of one question's group, e.g. 3.0")] = None,
    stop: Annotated[StopReason | None, typer.Option(help="why the episode ended")] = None,
    kind: Annotated[str | None, typer.Option(help="kind of question, e.g. two_hop")] = None,
    corrected: Annotated[
        bool, typer.Option("--corrected", help="only episodes in which a query corrected an unhelpful one")
    ] = False,
    min_reward: Annotated[float | None, typer.Option(help="lowest reward")] = None,
    max_reward: Annotated[float | None, typer.Option(help="highest reward")] = None,
    text: Annotated[str | None, typer.Option(help="words in question, gold answers, episode or results")] = None,
    question: Annotated[
        list[str] | None, typer.Option(help="id or words of a question: its episodes, oldest first (may be repeated)")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="most episodes; default: 10, or 2000 with --html")] = None,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="also print each token: mask, log-probability, weight version")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="write one HTML file for a browser instead")] = None,
) -> None:
    """Read the episodes of a run: what the model and the retriever wrote, the reward and its reason; newest first.

    Use it when a metric changes and you want to see why.

    - What went wrong in step 8?
      `research inspect demo --step 8 --max-reward 0.1`
    - One group, with its advantages:
      `research inspect demo --group 8.0`
    - Where did the model correct a query?
      `research inspect demo --corrected --eval after`
    - What did it do with this question before and after?
      `research inspect demo --question "Starry Night" --eval sft --eval after`
    - All of it, with charts and filters, in a browser:
      `research inspect demo --html runs/demo/inspect.html`
    """
    from apps.inspect.command import inspect_run
    from apps.inspect.filters import Filters

    filters = Filters(
        steps=tuple(step or ()),
        evaluations=tuple(evaluation or ()),
        group=group,
        stop=stop,
        kind=kind,
        corrected=corrected,
        min_reward=min_reward,
        max_reward=max_reward,
        text=text,
        questions=tuple(question or ()),
    )
    settings = load_settings(preset, overrides)
    inspect_run(settings, run, filters, limit=limit, tokens=tokens, html=html, console=console)


@app.command()
def config(
    overrides: Overrides = None,
    preset: Preset = DEFAULT_PRESET,
    describe: Annotated[
        bool, typer.Option("--describe", help="explain settings instead; arguments then name sections or settings")
    ] = False,
) -> None:
    """Print the settings as resolved from preset, environment and command line, or explain them.

    Use it to check what a command will run with, or to look up a setting before you change it.

    Examples: `research config grpo.steps=20`, `research config --describe grpo sft`
    """
    if describe:
        from cli.describe import show_settings

        show_settings(overrides or [], console)
    else:
        print(json.dumps(load_settings(preset, overrides).model_dump(mode="json"), indent=2))


def main() -> None:
    """Entry point: our own errors print one clear message and exit with 2, Ctrl-C exits with 130, SIGTERM with 143."""
    stopping.install()
    raise_limit()
    try:
        app()
    except ResearchError as error:
        _tell(error)
        sys.exit(2)
    except stopping.Stopped as stopped:
        if given_up := stopping.reason():
            _tell(given_up)
            stopping.leave(2)
        errors.print(stopping.last_words(), highlight=False, markup=False, soft_wrap=True)
        stopping.leave(128 + stopped.number)


def _tell(error: ResearchError) -> None:
    errors.print(f"[bold red]error:[/] {escape(escape_control_chars(str(error)))}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
