"""The command line: help that teaches, exit codes, JSON on stdout, argv -> config -> one function."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import accord
from accord.algo.table import POLICY_ALGORITHMS
from accord.cli import doctor, runs
from accord.cli.main import app
from accord.cli.progress import Progress
from accord.cli.status import find_runs, last_row, run_status
from accord.config import Recipe, RlConfig
from accord.errors import DataError, ResourceError, UsageError
from accord.progress import Notice, duration

COMMANDS = ("demo", "init", "run", "pretrain", "sft", "sample", "score", "reward", "rl", "dpo", "status", "doctor")
COMMANDS += (
    "import",
    "export",
    "label",
    "simulate",
    "report",
    "backup",
    "serve",
    "chat",
    "feedback",
    "round",
    "rollback",
    "models",
)
GROUPS = ("data", "eval", "cluster")
INSIDE = ("eval policy", "eval reward", "eval goodhart", "cluster up", "cluster down")


class Done:
    """What one command left behind."""

    def __init__(self, *argv: str) -> None:
        result = CliRunner().invoke(app, list(argv), prog_name="accord")
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands work from any folder: here, an empty one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Public functions replaced by recorders with the same signature: no training happens here."""
    made: list[tuple[str, dict[str, Any]]] = []
    for name in ("run_seeds", "run", "pretrain", "sft", "sample", "reward", "rl", "dpo", "score"):
        signature = inspect.signature(getattr(accord, name))

        def record(
            *args: Any, _name: str = name, _signature: inspect.Signature = signature, **kwargs: Any
        ) -> dict[str, Any]:
            made.append((_name, dict(_signature.bind(*args, **kwargs).arguments)))
            print("work talks")
            return _samples() if _name == "sample" else {"model": Path("out/model"), "loss": 1.5}

        monkeypatch.setattr(accord, name, record, raising=False)
    return made


def _samples() -> Any:
    from accord.scoring import SampleResult

    Path("out.jsonl").write_text('{"prompt": "P", "completion": " C", "finish": "stop", "tokens": 2}\n')
    return SampleResult(Path("out.jsonl"), 1, 0, 2.0, 1.0, None, 1, 0.0)


# ---- help ------------------------------------------------------------------------------------------------------


def test_help_lists_every_command() -> None:
    done = Done("--help")
    listed = [line.split()[0] for line in done.out.split("Commands:")[1].splitlines() if line.strip()]
    assert done.code == 0 and sorted(listed) == sorted(COMMANDS + GROUPS)


@pytest.mark.parametrize("command", [*COMMANDS, *INSIDE])
def test_every_help_has_examples_and_the_common_options(command: str) -> None:
    done = Done(*command.split(), "--help")
    assert done.code == 0
    assert f"accord {command}" in done.out.split("Example")[1]
    assert "--json" in done.out and "--verbose" in done.out


@pytest.mark.parametrize("command", ["pretrain", "sft", "reward", "rl", "dpo"])
def test_training_help_teaches_the_keys(command: str) -> None:
    out = Done(command, "--help-all").out
    assert all(option in out for option in ("--output-dir", "--seed", "--resume / --no-resume", "--recipe"))
    section = Recipe.model_fields[command].default
    for key in type(section).model_fields:
        assert f"{command}.{key}" in out
    assert "rl.actor.lr=0.0001 " not in out or command == "rl"


@pytest.mark.parametrize("command", ["pretrain", "sft", "reward", "rl", "dpo", "sample", "eval policy", "run"])
def test_help_shows_five_keys_and_says_where_the_others_are(command: str) -> None:
    out = Done(*command.split(), "--help").out
    told, more = out.split("Keys, with their defaults:\n")[1].split("more, which")
    assert len([line for line in told.split("\n\n")[0].splitlines() if "=" in line]) == 5
    assert f"`accord {command} --help-all` shows" in more


def test_help_shows_what_holds_for_the_algorithm_that_is_named() -> None:
    plain, grpo = (Done("rl", "--help-all", *words).out for words in ((), ("rl.algorithm=grpo",)))
    assert "rl.samples_per_prompt=1 " in plain and "rl.kl_coef=0.05 " in plain
    assert "rl.samples_per_prompt=8 " in grpo and "rl.kl_coef=0.04 " in grpo
    assert "Keys, as they are with rl.algorithm=grpo:" in grpo
    assert "rl.kl_coef=0.04" in Done("rl", "rl.algorithm=grpo", "--help").out  # wherever it stands
    assert "dpo.dpo_beta=2.0" in Done("dpo", "--help", "dpo.loss=simpo").out
    demo = Recipe.model_fields["rl"].default.iterations
    assert f"rl.iterations={demo} " not in Done("rl", "--help", "--recipe", "demo").out
    assert "Keys, as they are with demo" in Done("run", "demo", "--help").out
    assert "Keys, with their defaults:" in Done("rl", "--help", "rl.algorithm=nosuch").out  # help always helps


def test_help_lists_the_rows_of_a_table_with_a_line_each() -> None:
    out = Done("rl", "--help").out
    for name, row in POLICY_ALGORITHMS.items():
        assert any(line.split() == [name, *row.summary.split()] for line in out.splitlines())
    assert "module:name  of your own" in out


def test_version() -> None:
    assert Done("--version").out == f"accord {accord.__version__}\n"


# ---- argv -> config -> one function ------------------------------------------------------------------------------


def test_rl_hands_over_config_and_paths(calls: list[tuple[str, dict[str, Any]]]) -> None:
    done = Done(
        *("rl", "--model", "m", "--reward-model", "r", "--data", "p.jsonl", "-o", "out"),
        *("rl.kl_coef=0.3", "rl.actor.lr=1e-5", "--seed", "7", "--no-resume"),
    )
    assert done.code == 0, done.err
    [(name, given)] = calls
    assert name == "rl"
    assert given["config"] == RlConfig(kl_coef=0.3, actor={"lr": 1e-5})
    paths = {key: given[key] for key in ("model", "reward_model", "data", "output_dir")}
    assert paths == {"model": Path("m"), "reward_model": Path("r"), "data": Path("p.jsonl"), "output_dir": Path("out")}
    assert given["seed"] == 7 and given["resume"] is False and callable(given["log"])


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        ("sft --model m --data d -o out sft.epochs=2", "sft"),
        ("reward --model m --data d -o out reward.epochs=2", "reward"),
        ("dpo --model m --data d -o out dpo.loss=kto", "dpo"),
        ("dpo --model m --reward-model r --data d -o out dpo.online=true", "dpo"),
        ("sample --model m --data d -o out.jsonl sample.temperature=0.7", "sample"),
        ("score --model m --data d -o out.jsonl", "score"),
        ("score --reward-model m --data d -o out.jsonl", "score"),
        ("pretrain --texts t --valid-texts v --tokenizer k -o out model.width=128 pretrain.epochs=1", "pretrain"),
        ("run demo rl.iterations=2 --seed 4", "run"),
        ("demo --seeds 0,1 --smoke", "run_seeds"),
    ],
)
def test_each_command_calls_its_function(calls: list[tuple[str, dict[str, Any]]], argv: str, name: str) -> None:
    done = Done(*argv.split())
    assert done.code == 0, done.err
    assert [called for called, _ in calls] == [name]


def test_run_and_demo_choose_recipe_seed_and_folder(calls: list[tuple[str, dict[str, Any]]]) -> None:
    Done("run", "demo", "--seed", "4", "rl.iterations=2")
    Done("demo", "--seeds", "2,0", "-o", "here")
    Done("demo", "--smoke", "--from-dir", "there")
    (_, first), (_, second), (_, third) = calls
    assert (
        first["store"] is None
        and first["recipe"].seed == 4
        and first["recipe"].rl.iterations == 2
        and first["output_dir"] == Path("runs/demo")
    )
    assert second["seeds"] == [2, 0] and second["output_dir"] == Path("here")
    assert third["recipe"].name == "smoke" and third["from_dir"] == Path("there")


def test_project_gives_runs_folder_and_defaults(calls: list[tuple[str, dict[str, Any]]], elsewhere: Path) -> None:
    (elsewhere / "accord.yaml").write_text("defaults:\n  rl:\n    kl_coef: 0.77\n")
    below = elsewhere / "deep" / "down"
    below.mkdir(parents=True)
    os.chdir(below)
    recipe = below / "mine.yaml"
    recipe.write_text("seed: 1\n")
    assert Done("run", "mine.yaml").code == 0
    [(_, given)] = calls
    assert given["recipe"].rl.kl_coef == 0.77 and given["output_dir"] == elsewhere / "runs" / "mine"
    assert given["store"] == str(elsewhere / "accord.db")


def test_single_stage_refuses_keys_it_does_not_read() -> None:
    done = Done("sft", "--model", "m", "--data", "d", "-o", "o", "rl.kl_coef=1")
    assert done.code == 2 and "has no effect here" in done.err and "sft.*" in done.err


def test_show_recipe_prints_every_key() -> None:
    """The text is YAML that loads to the JSON, and the JSON is a whole recipe."""
    text = Done("run", "demo", "--show-recipe", "rl.kl_coef=0.5")
    as_json = Done("run", "demo", "--show-recipe", "--json")
    assert text.code == as_json.code == 0
    resolved = yaml.safe_load(text.out)
    assert resolved["rl"]["kl_coef"] == 0.5
    assert set(resolved) == set(as_json.json) == set(Recipe.model_fields)


# ---- output and errors -------------------------------------------------------------------------------------------


def test_json_alone_on_stdout(calls: list[tuple[str, dict[str, Any]]]) -> None:
    done = Done("sft", "--model", "m", "--data", "d", "-o", "out", "--json")
    assert done.json == {"model": "out/model", "loss": 1.5}
    assert "work talks" in done.err


def test_text_result_says_what_next(calls: list[tuple[str, dict[str, Any]]]) -> None:
    done = Done("sft", "--model", "m", "--data", "d", "-o", "out")
    assert (
        done.out == "model: out/model\nloss: 1.5\nnext: accord reward --model out/model --data FILE.jsonl -o reward\n"
    )


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (UsageError("odd", hint="do this"), 2, "accord: odd\n  hint: do this\n"),
        (DataError('"chosen" is empty', where="prefs.jsonl:412"), 3, 'accord: prefs.jsonl:412: "chosen" is empty\n'),
        (ResourceError("no network"), 4, "accord: no network\n"),
        (OSError(28, "No space left on device", "x"), 4, "No space left on device: x"),
        (MemoryError(), 4, "out of memory"),
        (KeyboardInterrupt(), 130, "the same command again goes on from what is finished"),
        (ZeroDivisionError("division"), 1, "this is a bug in Accord"),
        (FileNotFoundError(2, "No such file", "y"), 1, "this is a bug in Accord"),
    ],
)
def test_errors_become_exit_codes(monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, told: str) -> None:
    def fail(**_: Any) -> None:
        raise error

    monkeypatch.setattr(accord, "score", fail, raising=False)
    argv = ("score", "--model", "m", "--data", "d", "-o", "o")
    plain, verbose, as_json = Done(*argv), Done(*argv, "-v"), Done(*argv, "--json")
    assert plain.code == verbose.code == as_json.code == code
    assert told in plain.err and "Traceback" not in plain.err and plain.out == ""
    assert "Traceback" in verbose.err
    assert as_json.json["exit_code"] == code


def test_bug_names_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr(accord, "score", fail, raising=False)
    err = Done("score", "--model", "m", "--data", "d", "-o", "o").err
    assert "ZeroDivisionError: by nought" in err and "test_cli.py" in err and "in fail" in err


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ("run demo rl.kl_ceof=1", "did you mean 'rl.kl_coef'?"),
        ("run demmo", "did you mean 'demo'?"),
        ("run demo --project nowhere", "no accord.yaml here"),
        ("demo --seeds 1,x", "not whole numbers"),
        ("demo --seeds 1,1", "one seed twice"),
        ("demo --seeds -1", "not whole numbers"),
        ("run demo --seed -1", "--seed"),
        ("rl --model m", "--data"),
        ("run demo --sweep rl.kl_ceof=1,2", "did you mean 'rl.kl_coef'?"),
        ("run demo --sweep rl.kl_coef=1", "has 1 value"),
        ("nonsense", "nonsense"),
        ("demmo", "demo"),
    ],
)
def test_usage_errors_exit_2(argv: str, told: str) -> None:
    done = Done(*argv.split())
    assert done.code == 2 and told in done.err and "Traceback" not in done.err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("stroe: x", "accord.yaml:1: unknown key 'stroe'"),
        ("store: 3", "accord.yaml:1: store is 3"),
        ("store: a.db\ndefaults: [1]", "accord.yaml:2: defaults is [1]"),
        ("defaults:\n  rl:\n    kl_ceof: 1", "accord.yaml:3: unknown key 'rl.kl_ceof'"),
    ],
)
def test_bad_projects_are_refused(elsewhere: Path, text: str, told: str) -> None:
    (elsewhere / "accord.yaml").write_text(text)
    done = Done("run", "demo", "--dry-run")
    assert done.code == 2 and told in done.err


@pytest.mark.parametrize("argv", [["--help"], ["run", "demo", "--dry-run", "--json"]])
def test_the_installed_module_runs_from_anywhere(elsewhere: Path, argv: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "accord", *argv], capture_output=True, text=True, cwd=elsewhere)
    assert done.returncode == 0 and done.stderr == ""


def test_ctrl_c_exits_130(elsewhere: Path) -> None:
    """The real signal in a real process: `score` stands still until it is interrupted."""
    code = (
        "import accord, signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "accord.score = lambda **_: (print('ready', flush=True), time.sleep(60))\n"
        "from accord.cli.main import main\n"
        "sys.argv[1:] = ['score', '--model', 'm', '--data', 'd', '-o', 'o']\n"
        "main()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "ready\n"  # what work prints goes to stderr
        time.sleep(0.1)  # between print and sleep a signal would count as well
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err


# ---- project, status, doctor -------------------------------------------------------------------------------------


def test_init_makes_a_project_once(elsewhere: Path) -> None:
    first = Done("init", "films", "--json")
    assert first.code == 0, first.err
    made = elsewhere / "films"
    assert sorted(path.name for path in made.iterdir()) == sorted(first.json["created"])
    assert {"accord.yaml", "accord.db", "models", "runs", "exports", "recipe.schema.json"} <= set(first.json["created"])
    (made / "accord.yaml").write_text("store: accord.db\n# mine\n")
    second = Done("init", "films", "--json")
    assert second.json["created"] == [] and "# mine" in (made / "accord.yaml").read_text()


def test_init_refuses_a_file(elsewhere: Path) -> None:
    (elsewhere / "films").write_text("x")
    done = Done("init", "films")
    assert done.code == 3 and "is a file" in done.err


def test_status_without_anything() -> None:
    done = Done("status")
    assert done.code == 0 and "no project here" in done.out and "try `accord demo`" in done.out


def test_status_of_a_fresh_project() -> None:
    Done("init")
    told = Done("status", "--json").json
    assert set(told["store"].values()) == {0} and told["runs"] == []
    assert "store: empty" in Done("status").out


def make_run(folder: Path) -> None:
    """A run that is being written: pretraining and tokenizer done (in that order), fine-tuning begun."""
    for place, stage in enumerate(("pretrain", "tokenizer")):
        (folder / stage).mkdir(parents=True)
        (folder / stage / "stage.json").write_text('{"seconds": 130.4}')
        os.utime(folder / stage / "stage.json", (place, place))
    for step in (20, 100):
        (folder / "sft" / "checkpoints" / f"step_{step:06d}").mkdir(parents=True)
    rows = '{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.5}\n{"step": 3, "lo'
    (folder / "sft" / "metrics.jsonl").write_text(rows)
    (folder / "sft" / "running.json").write_text('{"seco')
    (folder / "resolved.json").write_text("{}")


def test_status_reads_runs_that_are_being_written(elsewhere: Path) -> None:
    make_run(elsewhere / "runs" / "mine")
    make_run(elsewhere / "runs" / "demo" / "seed_1")
    assert [path.name for path in find_runs(elsewhere / "runs")] == ["seed_1", "mine"]
    stages = run_status(elsewhere / "runs" / "mine").stages
    assert [(stage.name, stage.state) for stage in stages] == [
        ("pretrain", "done"),
        ("tokenizer", "done"),
        ("sft", "begun"),
    ]
    assert stages[2].metrics == {"step": 2, "loss": 2.5} and stages[2].checkpoint == "step_000100"
    out = Done("status").out
    assert "  pretrain    done    2 min 10 s\n" in out
    assert "  sft         begun   step 2, loss 2.5  step_000100\n" in out


def test_last_row_of_odd_files(tmp_path: Path) -> None:
    assert last_row(tmp_path / "none") == {}
    for text, row in (("", {}), ("[1]\n", {}), ('{"a": 1}\n\n', {"a": 1}), ('{"a": "é"}\nxx', {"a": "é"})):
        (tmp_path / "rows").write_text(text, encoding="utf-8")
        assert last_row(tmp_path / "rows") == row


def test_doctor_checks_everything() -> None:
    done = Done("doctor", "--json")
    assert done.code in (0, 4), done.err
    checks = {check["name"]: check for check in json.loads(done.out.split("\n{", 1)[0])["checks"]}
    assert set(checks) == {"python", "torch", "cores", "bf16", "memory", "disk", "folder", "sqlite"}
    assert checks["python"]["state"] == checks["torch"]["state"] == checks["sqlite"]["state"] == "ok"
    assert all(check["hint"] for check in checks.values() if check["state"] != "ok")


STEERING = "\x1b[2J\x1b]0;owned\x07\x9b31m\r\u202e\ud800"


def steers(text: str) -> bool:
    """Whether a text moves a cursor, renames a window or turns the direction of writing."""
    return any((unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t") or c == "\u202e" for c in text)


@pytest.mark.parametrize("more", [[], ["--json"], ["-v"]])
@pytest.mark.parametrize("kind", [DataError, ValueError, OSError, SystemExit])
def test_no_message_steers_a_terminal(kind: Any, more: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise kind(*([13] if kind is OSError else []), f"{STEERING} at https://ada:secret@example.org/x")

    monkeypatch.setattr(doctor, "examine", fails)
    done = Done("doctor", *more)
    assert done.code in (1, 3, 4) and "x1b[2J" in done.err and not steers(done.out + done.err)
    assert "secret" not in done.out + done.err or kind is not DataError
    if more == ["--json"] and kind is DataError:
        assert "\x1b[2J" in json.loads(done.out)["error"]  # the same text, spelt otherwise


@pytest.mark.parametrize("tty", [True, False])
def test_no_progress_steers_a_terminal(tty: bool) -> None:
    stream = Stream(tty)
    log = Progress(stream, Clock())  # type: ignore[arg-type]
    log(0.5, f"{STEERING} a text from a file")
    log.note(STEERING)
    log(1.0, Notice(STEERING))
    said = "".join(stream.lines)
    assert "x1b[2J" in said and "\x07" not in said and "\x9b" not in said and "\x1b[2J" not in said


def test_nothing_that_a_command_reads_steers_a_terminal(elsewhere: Path) -> None:
    rows = [{"prompt": f"{STEERING[:-1]} p{i}", "completion": STEERING[:-1], f"{STEERING[:-1]}": 1} for i in range(3)]
    name = "\x1b[31mrows.jsonl"
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows) + f'{{"prompt": "{STEERING[:-1]}\n')
    argvs = [
        ["data", "inspect", name],
        ["import", name, "--dry-run"],
        ["import", name, "-o", "out.jsonl"],
        ["init", "p"],
    ]
    argvs += [
        ["import", name, "--project", "p"],
        ["export", "--format", "csv", "--project", "p"],
        ["sft", "--model", name],
    ]
    argvs += [["sft", "--model", "p", "--data", name, "-o", "o"], ["run", name], ["status", "--project", name]]
    for argv in argvs:
        for more in ([], ["--json"]):
            done = Done(*argv, *more)
            assert not steers(done.out + done.err), (argv, done.out, done.err)


def test_doctor_fails_on_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert doctor.check_writeable(tmp_path / "missing").state == "bad"
    bad = doctor.Check("folder", "bad", "no", "mend it")
    monkeypatch.setattr(doctor, "examine", lambda folder: [bad])
    done = Done("doctor")
    assert done.code == 4 and "[BAD ] folder" in done.out and "hint: mend it" in done.out


@pytest.mark.parametrize(("version", "state"), [("2.9.1", "bad"), ("2.10.0+cpu", "ok"), ("3.0a1", "ok")])
def test_doctor_compares_versions_as_numbers(monkeypatch: pytest.MonkeyPatch, version: str, state: str) -> None:
    monkeypatch.setattr(doctor.metadata, "version", lambda name: version)
    assert doctor.check_torch().state == state


def test_seeds() -> None:
    assert runs.parse_seeds("0, 1,2") == [0, 1, 2]


# ---- progress ----------------------------------------------------------------------------------------------------


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Stream:
    def __init__(self, tty: bool = False) -> None:
        self.lines: list[str] = []
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty

    def write(self, text: str) -> None:
        self.lines.append(text)

    def flush(self) -> None:
        pass


def test_time_left_at_the_speed_so_far() -> None:
    """A quarter in 30 s: three quarters take 90 s. Half in 100 s: the other half takes 100 s."""
    clock = Clock()
    log = Progress(Stream(), clock)  # type: ignore[arg-type]
    assert log.seconds_left is None
    clock.now += 30
    log(0.25, "")
    assert log.seconds_left == pytest.approx(90)
    clock.now += 70
    log(0.5, "")
    assert log.seconds_left == pytest.approx(100)
    log(1.0, "")
    assert log.seconds_left == pytest.approx(0)


def test_what_a_resumed_run_skips_says_nothing_about_its_speed() -> None:
    """0.75 skipped in 0.1 s, then 0.125 done in 9.9 s: the last 0.125 takes 10 s (10 s since the start)."""
    clock, stream = Clock(), Stream()
    log = Progress(stream, clock)  # type: ignore[arg-type]
    clock.now += 0.1
    log(0.75, "pretrain: already done")
    assert log.seconds_left is None
    clock.now += 9.9
    log(0.875, "sft: loss 3")
    assert log.seconds_left == pytest.approx(10)
    assert stream.lines == ["[ 75%] pretrain: already done\n", "[ 88%] sft: loss 3  (10 s left)\n"]


def test_a_terminal_gets_a_bar_that_leaves_nothing_behind() -> None:
    stream = Stream(tty=True)
    with Progress(stream) as log:  # type: ignore[arg-type]
        log(0.5, "sft: [loss] 3")
    drawn = "".join(stream.lines)
    assert "sft: [loss] 3" in drawn and "50%" in drawn
    assert drawn.rstrip("\n").endswith("\x1b[2K")  # the line is erased


def test_lines_come_every_few_seconds_and_at_the_end() -> None:
    clock, stream = Clock(), Stream()
    log = Progress(stream, clock)  # type: ignore[arg-type]
    for step in range(1, 21):
        clock.now += 1
        log(step / 20, f"step {step}")
    assert [line.split("step ")[1].split()[0] for line in stream.lines] == ["1", "6", "11", "16", "20"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.4, "8 s"), (59.6, "1 min 00 s"), (130, "2 min 10 s"), (3900, "1 h 05 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
