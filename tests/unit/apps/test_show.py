"""What strangers write does not act on the terminal that shows it."""

from __future__ import annotations

import asyncio
import io

from rich.console import Console

from cli.show import show_answer
from research.schemas import AnswerResponse, AnswerSeconds, AnswerUsage, Step
from services.trainer.status import RunStatus
from services.trainer.telemetry.console import show

HOSTILE = "\x1b]52;c;ZXZpbA==\x07\x1b[2J\u202etxet\u2066\x9b1m\r"


def test_passages_and_answers_are_printed_without_what_would_act_on_the_terminal() -> None:
    answer = AnswerResponse(
        question=f"Who? {HOSTILE}",
        strategy="research",
        adapter=None,
        answer=f"Nobody {HOSTILE}",
        stop_reason="answered",
        format_fault=None,
        trace=[Step(kind="result", text=f"found [bold] {HOSTILE}"), Step(kind="answer", text=f"Nobody {HOSTILE}")],
        passages=[],
        usage=AnswerUsage(prompt_tokens=1, sampled_tokens=1, result_tokens=0, searches=0),
        seconds=AnswerSeconds(generate=0, search=0, total=0),
        weight_versions=["1"],
    )
    shown = io.StringIO()
    show_answer(answer, Console(file=shown, width=200))
    assert not set("\x1b\x07\x9b\r\u202e\u2066") & set(shown.getvalue())
    assert "found [bold]" in shown.getvalue()
    assert shown.getvalue().count("\ufffd") >= 4


def test_lines_of_a_run_may_hold_answers_of_other_services() -> None:
    shown = io.StringIO()
    status = RunStatus("r", 1)

    async def follow() -> None:
        following = asyncio.create_task(show(status, Console(file=shown, width=200)))
        await asyncio.sleep(0)
        status.log(f"training pauses: {HOSTILE}")
        following.cancel()

    asyncio.run(follow())
    assert "training pauses" in shown.getvalue()
    assert not set("\x1b\x07\x9b\r\u202e\u2066") & set(shown.getvalue())
