"""The words up to the verb: light, complete, and helpful when wrong."""

import subprocess
import sys

import pytest

from collimate.app import GROUPS, installed_apps
from collimate.cli import top_parser

LIGHT = """
import sys
from collimate.cli import main
try:
    main({arguments!r})
except SystemExit as end:
    assert not end.code, end.code
heavy = sorted({{"torch", "lightning", "numpy", "timm", "PIL"}} & set(sys.modules))
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    "arguments",
    [[], ["--help"], ["--version"], ["vision-language", "--help"], ["vision-language"], ["data", "--help"], ["list"]],
    ids=" ".join,
)
def test_help_and_list_import_no_torch(arguments: list[str]):
    done = subprocess.run([sys.executable, "-c", LIGHT.format(arguments=arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "collimate" in done.stdout or "CLIP" in done.stdout


def test_every_app_and_group_has_help(capsys, monkeypatch):
    """Summaries may hold what argparse would take for a format, such as a percent sign."""
    monkeypatch.setenv("COLUMNS", "200")  # lines may be broken at hyphens
    apps = installed_apps()
    parser = top_parser(apps)
    for name in [*apps, *GROUPS]:
        with pytest.raises(SystemExit) as end:
            parser.parse_args([name, "--help"])
        assert not end.value.code
        verbs = apps[name].all_verbs if name in apps else GROUPS[name][1]
        told = " ".join(capsys.readouterr().out.split())
        assert [verb.summary for verb in verbs.values() if verb.summary not in told] == []


def test_importing_collimate_imports_nothing_heavy():
    code = "import sys, collimate; assert 'torch' not in sys.modules; assert 'numpy' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_module_equals_command():
    done = subprocess.run([sys.executable, "-m", "collimate", "--version"], capture_output=True, text=True)
    assert done.stdout.startswith("collimate 0")


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "collimate", *arguments], capture_output=True, text=True)


def test_list_names_what_there_is():
    listed = run("list").stdout
    for name in ("collimate_vision_language.CLIP", "collimate_vision_language.SigLIP", "clip_demo"):
        assert name in listed
    for name in ("collimate.encoders.TimmImageEncoder", "collimate.losses.clip_loss"):
        assert name in listed
    assert "methods" not in run("list", "--kind=losses").stdout


def test_a_wrong_app_or_verb_lists_the_right_ones():
    wrong = run("vision")
    assert wrong.returncode == 2
    assert "vision-language" in wrong.stderr
    wrong = run("vision-language", "trian")
    assert wrong.returncode == 2
    assert "train" in wrong.stderr


def test_an_unknown_option_names_the_nearest():
    wrong = run("data", "shard", "--samples_per_shrad", "10", "--input", "a", "--output", "b")
    assert wrong.returncode == 2
    assert "samples_per_shard" in wrong.stderr


def test_an_unknown_recipe_key_names_the_nearest():
    wrong = run("vision-language", "train", "--config", "clip_demo", "--optimization.learning_rat", "1")
    assert wrong.returncode == 2
    assert "optimization.lr" in wrong.stderr
    wrong = run("vision-language", "train", "--config", "clip_demo", "--trainer.max_step", "1")
    assert wrong.returncode == 2
    assert "trainer.max_steps" in wrong.stderr


def test_an_unknown_recipe_names_the_recipes():
    wrong = run("vision-language", "train", "--config", "clip_dmo")
    assert wrong.returncode == 1
    assert "clip_demo" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_the_verbs(shell: str):
    script = run("completion", shell).stdout
    assert "zero-shot" in script


def test_doctor_is_content_here():
    done = run("doctor")
    assert done.returncode == 0, done.stdout
    assert "torch" in done.stdout
