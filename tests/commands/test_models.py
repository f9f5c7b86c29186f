"""The table of published models."""

from diffusion_jax.__main__ import run
from diffusion_jax.models.presets import PRESETS
from diffusion_jax.models.presets.first_stages import FIRST_STAGE_PRESETS, FirstStagePreset
from diffusion_jax.models.presets.preset import Preset


def test_the_table_has_a_line_for_each_model_that_matches(command_line):
    out, _ = command_line.run("models", "--only=*-s*")
    header, *lines = out.splitlines()
    assert header.split() == ["name", "parameters", "published", "GMAC", "tokens", "input"]
    rows = {name: row for name, *row in map(str.split, lines)}
    assert rows["dit-s/2"] == ["32,865,056", "33", "M", "6.06", "256", "32×32×4"]
    assert rows["dit-s/8"] == ["33,142,016", "33", "M", "0.36", "16", "32×32×4"]
    assert rows["ldm8-transformer-small"] == ["22,135,696", "–", "6.13", "258", "32×32×4"]
    assert all("-s" in name for name in rows)


def test_the_whole_table_with_the_first_stages_is_printed_without_a_trace(monkeypatch, capsys):
    for kind in (Preset, FirstStagePreset):
        monkeypatch.setattr(kind, "count", None)
    run("models", [])
    rows = {name: row for name, *row in map(str.split, capsys.readouterr().out.splitlines()[1:])}
    assert list(rows) == [*PRESETS, *FIRST_STAGE_PRESETS]
    assert rows["sd-vae"] == ["83,653,863", "–", "447.45", "1024", "256×256×3"]
    assert rows["vq-f4-noattn"] == ["53,219,486", "–", "465.06", "–", "256×256×3"]


def test_counting_anew_gives_the_stored_line(command_line):
    stored, counted = (command_line.run("models", "--only=dit-s/8", *flag)[0] for flag in ((), ("--count",)))
    assert stored == counted and "33,142,016" in stored


def test_a_pattern_without_a_match_is_named(command_line):
    out, error = command_line.run("models", "--only=dti*", status=2)
    assert out == ""
    assert error.splitlines()[-1] == (
        "diffusion-jax models: --only=dti*: matches no published model; `diffusion-jax models` lists all"
    )
    _, error = command_line.run("models", "--only=dit-xl2", status=2)
    assert error.splitlines()[-1] == (
        "diffusion-jax models: --only=dit-xl2: matches no published model; did you mean 'dit-xl/2'?"
    )
