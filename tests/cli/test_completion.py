"""What a shell is given to complete a line with."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from wanstore.cli import main
from wanstore.testing.manifests import seal_as_is


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with two pipelines, which completion looks into no further."""
    for name in ("wan", "other"):
        (tmp_path / name).mkdir()
        seal_as_is(tmp_path / name)
    return tmp_path


def completed(*line: object) -> list[str]:
    """What the last word of a line may become."""
    words = list(map(str, line))
    found = ShellComplete(main, {}, "wanstore", "_WANSTORE_COMPLETE").get_completions(words[:-1], words[-1])
    return [item.value for item in found]


@pytest.mark.parametrize("command", ["show", "verify", "delete", "generate", "compile", "bench", "doctor"])
def test_stored_names_complete(store: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """From the store that the line names before, or from the variable's."""
    monkeypatch.delenv("WANSTORE_STORE", raising=False)
    assert completed(command, "--store", store, "") == ["other", "wan"]
    assert completed(command, "") == []
    monkeypatch.setenv("WANSTORE_STORE", str(store))
    assert completed(command, "w") == ["wan"]


def test_names_to_copy_are_those_of_the_source(store: Path) -> None:
    """Which --from names."""
    assert completed("copy", "--from", store, "o") == ["other"]


def test_a_store_that_cannot_be_opened_completes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that is being typed is no place for an error."""
    assert completed("show", "--store", "nowhere://x", "") == []
    assert completed("generate", "--presets-file", "/nowhere", "--preset", "480p/5") == ["480p/5s"]


def test_presets_complete_each_after_its_comma(tmp_path: Path) -> None:
    """Those of --presets-file too."""
    assert completed("generate", "w", "--preset", "480p/3") == ["480p/3s"]
    assert completed("bench", "w", "--presets", "480p/3s,720p/1") == ["480p/3s,720p/10s"]
    file = tmp_path / "presets.toml"
    file.write_text('["480p/30s"]\nwidth = 832\nheight = 480\nframes = 481\n')
    assert completed("generate", "w", "--presets-file", file, "--preset", "480p/3") == ["480p/3s", "480p/30s"]


def test_the_command_answers_a_shell(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As bash asks, by the environment; folders are left to the shell."""
    for words, answer in (("wanstore show w", "plain,wan"), ("wanstore list --store ./x", "dir,./x")):
        monkeypatch.setenv("WANSTORE_STORE", str(store))
        monkeypatch.setenv("_WANSTORE_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        with pytest.raises(SystemExit):
            main([], prog_name="wanstore")
        assert capsys.readouterr().out.splitlines() == [answer]
