"""The table of published models."""


def test_the_table_has_a_line_for_each_model_that_matches(command_line):
    out, _ = command_line.run("models", "--only=*-s*")
    header, *lines = out.splitlines()
    assert header.split() == ["name", "parameters", "published", "GMAC", "tokens", "input"]
    rows = {name: row for name, *row in map(str.split, lines)}
    assert rows["dit-s/2"] == ["32,865,056", "33", "M", "6.06", "256", "32×32×4"]
    assert rows["dit-s/8"] == ["33,142,016", "33", "M", "0.36", "16", "32×32×4"]
    assert rows["ldm8-transformer-small"] == ["22,135,696", "–", "6.13", "258", "32×32×4"]
    assert all("-s" in name for name in rows)


def test_a_pattern_without_a_match_is_named(command_line):
    out, error = command_line.run("models", "--only=dti*", status=2)
    assert out == ""
    assert error.splitlines()[-1] == (
        "diffusion-jax models: --only=dti*: matches no published model; `diffusion-jax models` lists all"
    )
