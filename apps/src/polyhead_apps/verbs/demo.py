"""The verb `demo`: the embedded dataset, or a folder of yours, end to end."""

from __future__ import annotations

from pathlib import Path

from polyhead.manifest import resolve
from polyhead_apps.app import App
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

    An app with several arms replaces it by ``Demo.function``, which takes the same arguments.
    """
    if app.demo.function:
        resolve(app.demo.function)(
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
    spec = task_spec(app, task or app.tasks[0])
    # The note speaks of the embedded data: on a folder of the user's it would be wrong.
    notes = [QUICK] if quick else []
    if data is None:
        notes.append(app.demo.note)
    fitted = train(
        app,
        given,
        console,
        data=data or embedded_default(spec),
        task=spec.name,
        time_limit=time_limit,
        out=out,
        force=force,
        device=device,
        threads=threads,
        base={**app.demo.settings, **(app.demo.quick if quick else {})},
        note=" ".join(notes),
        name="demo",
    )
    folder = fitted.run.folder
    # The run keeps its settings, so the predictions need none of the user's.
    written = write(
        app,
        Given(command=given.command),
        Console(quiet=True),
        model=str(folder),
        out=folder / "predictions",
        force=force,
        device=device,
        threads=threads,
    )
    present(fitted, console, as_json=as_json)
    for file in written.files:
        console.line(f"predictions: {file}")
    again = command_line(app.name, ["fit", "--data", "PATH"])
    console.line(f"made {folder}: open {folder / 'report.html'}. Next, on your own data: {again}")
