"""The verb `demo`: the embedded dataset, or a folder of yours, end to end."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from polyhead.manifest import resolve
from polyhead_apps.app import App
from polyhead_apps.comparison import compare
from polyhead_apps.comparison import present as present_comparison
from polyhead_apps.console import Console
from polyhead_apps.opening import embedded_default, task_spec
from polyhead_apps.options import Given
from polyhead_apps.runs import command_line
from polyhead_apps.verbs.fit import present, train
from polyhead_apps.verbs.predict import write

__all__ = ["demo"]

QUICK = "Quick demo: toy size, it makes no claim."


def demo(
    app: App,
    given: Given,
    console: Console,
    *,
    quick: bool = False,
    data: str | None = None,
    task: str | None = None,
    time_limit: str | None = None,
    out: Path | None = None,
    force: bool = False,
    device: str = "auto",
    threads: int | None = None,
    as_json: bool = False,
) -> None:
    """Fit, evaluate against the baselines, predict and report, with the demo's settings under the user's.

    With ``Demo.arms`` every arm is trained and they are compared; predictions are those of the first one's first run.
    With ``Demo.function`` that is called instead; it takes the same arguments.
    """
    spec = task_spec(app, task or app.tasks[0])
    chosen = app.demos.get(spec.name, app.demo)
    if chosen.function:
        resolve(chosen.function)(
            app,
            given,
            console,
            quick=quick,
            data=data,
            task=task,
            time_limit=time_limit,
            out=out,
            force=force,
            device=device,
            threads=threads,
            as_json=as_json,
        )
        return
    # The note speaks of the embedded data: on a folder of the user's it would be wrong.
    notes = [QUICK] if quick else []
    if data is None:
        notes.append(chosen.note)
    common: dict[str, Any] = {
        "data": data or embedded_default(spec),
        "task": spec.name,
        "time_limit": time_limit,
        "out": out,
        "force": force,
        "device": device,
        "threads": threads,
        "note": " ".join(notes),
    }
    over = chosen.quick if quick else {}
    if chosen.arms:
        seeds = 1 if quick else chosen.seeds
        comparison = compare(app, given, console, chosen.arms, seeds=seeds, base=chosen.settings, over=over, **common)
        folder, run = comparison.folder, comparison.main
        show = partial(present_comparison, comparison)
    else:
        fitted = train(app, given, console, name="demo", base={**chosen.settings, **over}, **common)
        folder = run = fitted.run.folder
        show = partial(present, fitted)
    # The run keeps its settings, so the predictions need none of the user's.
    written = write(
        app,
        Given(command=given.command),
        Console(quiet=True),
        model=str(run),
        out=run / "predictions",
        force=True,
        device=device,
        threads=threads,
    )
    show(console, as_json=as_json)
    for file in written.files:
        console.line(f"predictions: {file}")
    again = command_line(app.name, ["fit", "--data", "PATH"])
    console.line(f"made {folder}: open {folder / 'report.html'}. Next, on your own data: {again}")
