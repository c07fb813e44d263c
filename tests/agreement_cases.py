"""What can differ between two ranks, and what both must say then."""

from __future__ import annotations

import json
import random
from pathlib import Path

from agreeing_ranks import Case, Files, Given
from typer.testing import CliRunner

from crashproof.cli.app import app

__all__ = [
    "config_cases",
    "data_cases",
    "harmless_cases",
    "logits_cases",
    "model_cases",
    "resume_cases",
    "running_cases",
    "start_cases",
]


def config_case(key: str, first: str, second: str, *both: str) -> Case:
    return Case(
        name=key,
        says=["were started with different inputs", f"{key}: {first} on rank 0, {second} on rank 1"],
        both=list(both),
        first=Given(arguments=[f"{key}={first}"]),
        second=Given(arguments=[f"{key}={second}"]),
    )


def config_cases() -> list[Case]:
    """Every kind of key, also those that used to hang or to end in a message of something else."""
    pairs = [
        ("train.learning_rate", "0.002", "0.02"),
        *(("train.seed", "0", "1"), ("train.gradient_accumulation", "1", "2"), ("train.batch_size", "4", "8")),
        *(("train.clip_norm", "1.0", "0.5"), ("train.weight_decay", "0.01", "0.0"), ("train.warmup_steps", "2", "3")),
        *(("train.schedule_steps", "4", "8"), ("train.final_fraction", "0.1", "0.2"), ("train.steps", "4", "6")),
        *(("train.skips_nonfinite", "true", "false"), ("train.limit_seconds", "60.0", "45.0")),
        *(("train.precision", '"auto"', '"bfloat16"'), ("train.checkpoints_activations", "false", "true")),
        *(("train.compile", "false", "true"), ("loss.kd", "1.0", "0.5"), ("loss.temperature", "2.0", "1.0")),
        *(("loss.chunk_tokens", "512", "256"), ("data.max_length", "24", "16"), ("data.held_out", "0.0", "0.25")),
        *(("data.on_too_long", '"truncate"', '"skip"'), ("tokenizer.vocab_size", "300", "290")),
        *(("teacher.steps", "3", "4"), ("teacher.seed", "1", "2"), ("student.d_model", "16", "32")),
        *(("student.save_dtype", '"auto"', '"bfloat16"'), ("progress.checkpoint_interval", "2", "3")),
        *(("progress.saves_behind", "true", "false"), ("progress.eval_samples", "64", "32")),
        ("progress.keep.latest", "1", "2"),
    ]
    cases = [config_case(*pair) for pair in pairs]
    cases.append(config_case("progress.eval_every", "2", "3", "data.held_out=0.25"))
    cases.append(config_case("student.lora.rank", "4", "8"))
    cases.append(
        Case(
            name="train.strategy",
            says=["train.strategy: "],
            second=Given(arguments=["train.strategy=fsdp"]),
            first=Given(arguments=["train.strategy=ddp"]),
        )
    )
    return cases


def start_cases(files: Files) -> list[Case]:
    """All else that a process is started with."""
    broken = files.folder / "broken.yaml"
    broken.write_text("train: [\n")
    return [
        Case(name="recipe", says=["recipe: kd on rank 0, process on rank 1"], second=Given(recipe="process")),
        Case(
            name="--resume",
            says=["--resume: auto on rank 0, never on rank 1"],
            second=Given(arguments=["--resume", "never"]),
        ),
        Case(
            name="version of a library",
            says=["the version of tokenizers: ", "0.0.1 on rank 1"],
            second=Given(path=[files.version("tokenizers")]),
        ),
        Case(
            name="variable of the environment",
            says=["the environment's NVIDIA_TF32_OVERRIDE: (absent) on rank 0, 0 on rank 1"],
            second=Given(environment={"NVIDIA_TF32_OVERRIDE": "0"}),
        ),
        Case(
            name="an invalid value",
            says=["Rank 1 failed while preparing to start", "train.steps: Input should be greater than"],
            says_of_its_own=["train.steps: Input should be greater than"],
            second=Given(arguments=["train.steps=-1"]),
        ),
        Case(
            name="an invalid value on rank 0",
            says=["Rank 0 failed while preparing to start", "Unknown config key train.stepz"],
            says_of_its_own=["Unknown config key train.stepz"],
            first=Given(arguments=["train.stepz=1"]),
        ),
        Case(
            name="a broken config file",
            says=["Rank 1 failed while preparing to start", "broken.yaml is not valid YAML"],
            says_of_its_own=["broken.yaml is not valid YAML"],
            second=Given(arguments=["--config", str(broken)]),
        ),
        Case(
            name="a missing config file",
            says=["Rank 1 failed while preparing to start", "nowhere.yaml cannot be read"],
            says_of_its_own=["nowhere.yaml cannot be read"],
            second=Given(arguments=["--config", str(files.folder / "nowhere.yaml")]),
        ),
        Case(
            name="a device that only one host has",
            says=["Rank 1 failed while preparing to start", "train.device: cuda is not available here"],
            says_of_its_own=["train.device: cuda is not available here"],
            second=Given(arguments=["train.device=cuda"]),
        ),
        Case(
            name="a variable that rank 0 lacks",
            says=["Rank 0 failed while looking at the config", "OUR_WEBHOOK is not set"],
            says_of_its_own=["OUR_WEBHOOK is not set"],
            both=["progress.alerts.webhook=env:OUR_WEBHOOK"],
        ),
    ]


def data_cases(files: Files) -> list[Case]:
    """Files under other paths, as hosts without a shared file system have them."""
    shuffled = list(files.lines)
    random.Random(1).shuffle(shuffled)
    letter = [files.lines[0].replace("0: ", "0; "), *files.lines[1:]]
    held_out, other = (
        files.write("held.jsonl", files.lines[:4]),
        files.write("other.jsonl", files.lines[4:8]),
    )

    def second(path: Path) -> Given:
        return Given(arguments=[f"data.path={path}"])

    return [
        Case(
            name="a shuffled data file",
            says=["the data: 48 samples", "on rank 1", "The samples are the same, in another order"],
            second=second(files.write("shuffled.jsonl", shuffled)),
        ),
        Case(
            name="a shorter data file",
            says=["the data: 48 samples (sha256 ", ") on rank 0, 47 samples (sha256 "],
            second=second(files.write("shorter.jsonl", files.lines[:-1])),
        ),
        Case(
            name="a data file with another letter",
            says=["the data: 48 samples", "on rank 1"],
            second=second(files.write("letter.jsonl", letter)),
        ),
        Case(
            name="a missing data file",
            says=["Rank 1 failed while reading the data", "nowhere.jsonl"],
            says_of_its_own=["nowhere.jsonl"],
            second=second(files.folder / "nowhere.jsonl"),
        ),
        Case(
            name="a malformed line",
            says=["Rank 1 failed while reading the data", "malformed.jsonl, line 49"],
            says_of_its_own=["malformed.jsonl, line 49"],
            second=second(files.write("malformed.jsonl", [*files.lines, "{]\n"])),
        ),
        Case(
            name="another held-out file",
            says=["the held-out data: sha256 "],
            first=Given(arguments=[f"data.eval_path={held_out}"]),
            second=Given(arguments=[f"data.eval_path={other}"]),
        ),
    ]


def model_cases(files: Files) -> list[Case]:
    """Folders of models that differ between hosts."""
    other_tokenizer = files.copy(files.student, "other-tokenizer")
    content = json.loads((other_tokenizer / "tokenizer.json").read_text())
    content["model"]["merges"] = []
    (other_tokenizer / "tokenizer.json").write_text(json.dumps(content))
    other_config = files.copy(files.student, "other-config")
    text = (other_config / "config.json").read_text()
    (other_config / "config.json").write_text(text.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert text != (other_config / "config.json").read_text()
    # Its shape is that of the folder.
    of_folder = ["student.d_model=64", "student.num_heads=4"]

    def student(path: Path) -> Given:
        return Given(arguments=[*of_folder, f"student.path={path}"])

    def teacher(path: Path) -> Given:
        return Given(arguments=["teacher.kind=local", f"teacher.path={path}"])

    return [
        Case(
            name="a student with one other bit",
            says=["the student's model.safetensors: ", "on rank 1"],
            first=student(files.student),
            second=student(files.altered(files.student, "altered-student")),
        ),
        Case(
            name="a student with another tokenizer",
            says=["the student's tokenizer.json: "],
            first=student(files.student),
            second=student(other_tokenizer),
        ),
        Case(
            name="a student with another config",
            says=["the student's config.json: "],
            first=student(files.student),
            second=student(other_config),
        ),
        Case(
            name="a student that one host lacks",
            says=["Rank 1 failed while looking at the config and the models", "missing-student is not a folder"],
            says_of_its_own=["missing-student is not a folder"],
            first=student(files.student),
            second=student(files.folder / "missing-student"),
        ),
        Case(
            name="a teacher with one other bit",
            says=["the teacher's model.safetensors: ", "on rank 1"],
            first=teacher(files.teacher),
            second=teacher(files.altered(files.teacher, "altered-teacher")),
        ),
    ]


def resume_cases(files: Files, strategy: str) -> list[Case]:
    """A checkpoint under another path, which holds another one there, or nothing."""
    folder, other = files.folder / f"resumed-{strategy}", files.folder / f"elsewhere-{strategy}"
    settings = [f"train.strategy={strategy}"]
    seed = "train.seed=1"

    def begun(name: Path, *more: str) -> Case:
        return Case(name=name.name, says=[], both=[*settings, *more], folder=name.name, may_train=True, code=0)

    def resumed(name: str, path: Path, *says: str, code: int = 2, own: str = "") -> Case:
        return Case(
            name=name,
            says=list(says),
            says_of_its_own=[own] if own else [],
            both=settings,
            first=Given(arguments=["--resume", str(folder / "checkpoint_2")]),
            second=Given(arguments=["--resume", str(path)]),
            folder=folder.name,
            may_train=True,
            code=code,
        )

    missing = files.folder / "checkpoint_7"
    says_missing = f"The checkpoint {missing} cannot be used"
    return [
        # Its last checkpoint is at a step that the resumed run saves none at.
        begun(folder, "train.steps=3"),
        begun(other, seed),
        resumed(
            "another checkpoint", other / "checkpoint_2", "do not have the same checkpoint: checkpoint_2: sha256"
        ),
        resumed("no checkpoint", missing, "Rank 1 failed while looking at", says_missing, own=says_missing),
        resumed("the same checkpoint", folder / "checkpoint_2", code=0),
    ]


def harmless_cases(files: Files) -> list[Case]:
    """What differs between hosts and decides nothing: they train."""
    data = files.write("copied.jsonl", files.lines)
    student = files.copy(files.student, "copied-student")
    (student / "README.md").write_text("A model.")
    (student / ".cache").mkdir()
    (student / ".cache" / "times").write_text("1795483505")
    of_folder = ["student.d_model=64", "student.num_heads=4"]

    def given(data: Path, student: Path, command: str) -> Given:
        places = [f"data.path={data}", f"student.path={student}", f"progress.alerts.command={command}"]
        return Given(arguments=[*of_folder, *places], environment={"HF_HOME": command})

    return [
        Case(
            name="other places of equal files, other alerts",
            says=[],
            first=given(files.data, files.student, "echo one"),
            second=given(data, student, "echo other"),
            may_train=True,
            code=0,
        )
    ]


def logits_cases(files: Files) -> list[Case]:
    """Logits that were captured again on one host, from another teacher."""
    teachers = [files.teacher, files.altered(files.teacher, "teacher-of-logits")]
    captured = [_capture(files, teacher, f"logits{number}") for number, teacher in enumerate(teachers)]
    first, second = (Given(arguments=["teacher.kind=logits", f"teacher.path={folder}"]) for folder in captured)
    both = ["loss.intermediate=0"]
    return [
        Case(name="other captured logits", says=["the teacher's manifest: "], both=both, first=first, second=second),
        Case(name="the same captured logits", says=[], both=both, first=first, second=first, may_train=True, code=0),
    ]


def _capture(files: Files, teacher: Path, name: str) -> Path:
    folder = files.folder / name
    config = files.folder / f"{name}.yaml"
    config.write_text(
        f"data: {{path: {files.data}, max_length: 24, on_too_long: truncate}}\n"
        f"teacher: {{kind: local, path: {teacher}}}\n"
    )
    captured = CliRunner().invoke(app, ["capture-logits", "--config", str(config), "--out", str(folder)])
    assert 0 == captured.exit_code, captured.output
    return folder


def running_cases(strategy: str, astray: str, says: str) -> list[Case]:
    """A run whose second rank goes astray in step 3, the next start of it, and one in which nothing happened."""
    settings = ["train.steps=6", f"train.strategy={strategy}"]
    folder = f"{astray}-{strategy}"
    return [
        Case(
            name=f"other {astray} from step 3 on, {strategy}",
            says=[f"Rank 1 {says}, in one of the steps 3 to 4. Nothing was saved since"],
            both=settings,
            second=Given(astray=astray),
            folder=folder,
            may_train=True,
        ),
        Case(name="started again", says=[], both=settings, folder=folder, may_train=True, code=0),
        Case(name="uninterrupted", says=[], both=settings, folder=f"{folder}-reference", may_train=True, code=0),
    ]
