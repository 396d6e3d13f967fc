from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from polyhead.errors import ConfigError
from polyhead_apps.config import (
    MAX_FILE_BYTES,
    ModelSettings,
    Section,
    TaskSettings,
    TrainSettings,
    UsageError,
    flatten,
    load_settings,
    parse_value,
    read_yaml,
)


class DataSettings(Section):
    start: Annotated[str, Field(description="first row")] = ""
    horizon: Annotated[int, Field(gt=0, description="steps ahead")] = 12


class Settings(TaskSettings):
    data: DataSettings = DataSettings(horizon=6)
    model: ModelSettings = ModelSettings(name="gman")
    train: TrainSettings = TrainSettings(lr=0.5)


def write(folder: Path, text: str) -> Path:
    path = folder / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def error(file: Path | None = None, *sets: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(Settings, file, sets)
    return str(caught.value)


def test_defaults_of_the_task_stay_where_one_field_of_a_section_is_given() -> None:
    settings = load_settings(Settings, sets=["data.start=2012-03-01", "train.steps=3", "model.heads=4"])
    assert settings.data == DataSettings(start="2012-03-01", horizon=6)
    assert settings.model == ModelSettings(name="gman", config={"heads": 4})
    assert (settings.train.lr, settings.train.steps) == (0.5, 3)


def test_base_file_flags_and_sets_lie_over_each_other_in_this_order(tmp_path: Path) -> None:
    file = write(tmp_path, "train:\n  lr: 2\n  steps: 2\n  keep: 2\n")
    settings = load_settings(
        Settings,
        file,
        ["train.lr=4"],
        {"train.lr": ("--lr", 3), "train.steps": ("--steps", 3)},
        base={"train.lr": 1, "train.steps": 1, "train.keep": 1, "seed": 1},
    )
    assert (settings.train.lr, settings.train.steps, settings.train.keep, settings.seed) == (4, 3, 2, 1)


def test_base_is_not_changed() -> None:
    base = {"model.config": {"heads": 2}}
    assert load_settings(Settings, sets=["model.heads=4"], base=base).model.config == {"heads": 4}
    assert base == {"model.config": {"heads": 2}}


def test_written_settings_are_read_again(tmp_path: Path) -> None:
    import yaml

    settings = load_settings(Settings, sets=["model.config={heads: 4, name: '007'}", "train.betas=[0.1, 0.2]"])
    file = write(tmp_path, yaml.safe_dump(settings.model_dump(mode="json")))
    assert load_settings(Settings, file) == settings


def test_empty_file_and_empty_sections_mean_defaults(tmp_path: Path) -> None:
    assert load_settings(Settings, write(tmp_path, "")) == Settings()
    assert load_settings(Settings, write(tmp_path, "train:\ndata:\n")) == Settings()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("0x10", 16),
        ("-3", -3),
        (".5", 0.5),
        ("true", True),
        ("null", None),
        ("", None),
        ("12:30", "12:30"),
        ("2012-03-01", "2012-03-01"),
        ("no", "no"),
        ("007", "007"),
        ("[1, a]", [1, "a"]),
        ("{a: 1}", {"a": 1}),
        (".inf", float("inf")),
    ],
)
def test_values_are_those_of_yaml_1_2(text: str, value: object) -> None:
    parsed = parse_value(text, where="--set x")
    assert parsed == value
    assert type(parsed) is type(value)


def test_unknown_keys_name_their_source_and_the_nearest_key(tmp_path: Path) -> None:
    file = write(tmp_path, "train:\n  lrr: 1\n")
    assert error(file).startswith(f'{file}: no setting "train.lrr". Did you mean "train.lr"?  All: train.epochs, ')
    assert error(None, "trian.lr=3").startswith(
        '--set trian.lr=3: no setting "trian". Did you mean "train"?  All: seed, data, task, model, train, predict'
    )
    assert error(None, "task.x=3") == '--set task.x=3: no setting "task.x".  All: none'
    assert "Did you mean" not in error(None, "zzzzzz=3")


def test_the_command_line_is_wrong_usage_and_a_file_is_not(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        load_settings(Settings, sets=["seed=-1"])
    with pytest.raises(UsageError, match=r"--lr: train\.lr is 0: input should be greater than 0"):
        load_settings(Settings, flags={"train.lr": ("--lr", 0)})
    with pytest.raises(ConfigError) as caught:
        load_settings(Settings, write(tmp_path, "seed: -1"))
    assert not isinstance(caught.value, UsageError)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seed", "--set seed: write --set KEY=VALUE, such as --set train.lr=0.01."),
        ("=3", "--set =3: write --set KEY=VALUE, such as --set train.lr=0.01."),
        ("seed.x=3", "--set seed.x=3: seed has no parts."),
        ("data=3", "--set data=3: data is a group of settings (start, horizon): set one of them."),
        ("seed=-1", "--set seed=-1: seed is -1: input should be greater than or equal to 0."),
        ("train.lr=.inf", "--set train.lr=.inf: train.lr is inf: input should be a finite number."),
        ("data.horizon=[1", "--set data.horizon, line 1, column 3: expected ',' or ']', but got '<stream end>'."),
        (
            "train.optimizer=adan",
            "--set train.optimizer=adan: train.optimizer is 'adan': input should be 'adam', 'adamw' or 'sgd'.",
        ),
    ],
)
def test_wrong_settings_say_what_and_where(setting: str, message: str) -> None:
    assert error(None, setting) == message


def test_all_wrong_values_are_named_up_to_ten() -> None:
    text = error(None, "seed=-1", "data.horizon=0")
    assert "seed is -1" in text
    assert "data.horizon is 0" in text
    names = ("accumulate", "batch_size", "epochs", "steps", "lr", "keep", "log_steps", "patience", "clip_norm", "seed")
    many = [f"train.{name}=-1" for name in names[:-1]] + ["seed=-1", "data.horizon=0", "train.workers=-1"]
    assert error(None, *many).endswith("And 2 more.")


def test_missing_value_is_named() -> None:
    class Strict(Section):
        path: Annotated[str, Field(description="a file")]

    with pytest.raises(ConfigError, match=r"^setting path: path: field required\.$"):
        load_settings(Strict)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", ' holds a list: settings are keys and values, such as "seed: 0".'),
        ("a: &x 1\nb: *x", ', line 2, column 4: alias "*x" is not allowed in settings: write the value out.'),
        ("seed: 1\nseed: 2", ', line 2, column 1: key "seed" comes twice.'),
        ("[1]: 2", ", line 1, column 1: a key must be text."),
        (
            "!!python/object/apply:os.system [ls]",
            ", line 1, column 1: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/object/apply:os.system'.",
        ),
        ("[" * 5000, " is nested too deeply to be settings."),
        ("seed: " + "9" * 5000, " is not readable YAML: Exceeds the limit"),
        ("seed: \x00", " is not readable YAML: unacceptable character"),
    ],
)
def test_hostile_files_end_in_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path, text)
    said = error(file)
    assert said.startswith(f"{file}{message}")
    assert "\n" not in said


def test_billion_laughs_are_refused_before_they_grow(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    assert 'alias "*a0" is not allowed' in error(write(tmp_path, "\n".join(lines)))


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    assert error(tmp_path / "none.yaml") == f"Cannot read settings {tmp_path / 'none.yaml'}: No such file or directory."
    assert error(tmp_path) == f"Cannot read settings {tmp_path}: Is a directory."
    binary = tmp_path / "x.yaml"
    binary.write_bytes(b"seed: \xff\xfe")
    assert error(binary) == f"{binary} is not UTF-8 text (byte 6). Settings are YAML."
    large = write(tmp_path, "#" * (MAX_FILE_BYTES + 1))
    assert error(large) == f"{large} has 1,000,001 bytes: settings are at most 1,000,000. Is it a data file?"


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):  # any other error fails
        read_yaml(text, "text")


@given(st.dictionaries(st.sampled_from("abc"), st.dictionaries(st.sampled_from("xy"), st.integers(), min_size=1)))
def test_flatten_keeps_every_value(tree: dict[str, dict[str, int]]) -> None:
    assert flatten(tree) == {f"{a}.{b}": value for a, inner in tree.items() for b, value in inner.items()}
