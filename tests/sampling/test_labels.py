import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.sampling.labels import choose_labels, parse_labels

PETS = ("cat", "dog", "frog")


@pytest.mark.parametrize(
    ("text", "names", "want"),
    [
        ("cat,dog", PETS, [0, 1]),
        ("frog, 0, 1-2", PETS, [2, 0, 1, 2]),
        ("dog,cat,dog", PETS, [1, 0, 1]),
        ("t-shirt", ("shoe", "t-shirt"), [1]),
        # A number of a class is that, whatever classes are called; one that fits none may be a name.
        ("1,0", ("1", "0"), [1, 0]),
        ("2020,2019", ("2019", "2020"), [1, 0]),
        ("0-1", ("0-1", "x"), [0, 1]),
        ("7-9", ("7-9", "x"), [0]),
        # A name may hold commas, and the longest one is meant.
        ("tench, Tinca tinca,goldfish", ("tench", "tench, Tinca tinca", "goldfish"), [1, 2]),
        ("tench,goldfish", ("tench", "tench, Tinca tinca", "goldfish"), [0, 2]),
        ("balanced", ("a", "balanced", "b"), [0, 1, 2]),
    ],
)
def test_classes_may_be_named(text, names, want):
    labels = parse_labels(text, 2 * len(want), len(names), 0, names)
    assert labels.tolist() == 2 * want and labels.dtype == "int32"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("catt", "'catt' is no class; did you mean 'cat'? This model's classes are 0 to 2 (cat, dog, frog)"),
        ("cat,zzz", "'zzz' is no class; this model's classes are 0 to 2 (cat, dog, frog)"),
        ("3", "this model's classes are 0 to 2 (cat, dog, frog)"),
        ("0-3", "this model's classes are 0 to 2 (cat, dog, frog)"),
        ("²", "'²' is no class; this model's"),
        ("0-²", "'0-²' is no class; this model's"),
        ("cat,", "'' is no class; this model's"),
    ],
)
def test_other_labels_are_refused_with_the_names_there_are(text, message):
    with pytest.raises(UserError) as caught:
        parse_labels(text, 4, 3, 0, PETS)
    assert str(caught.value).startswith(f"--labels {text}: {message}") and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", " "])
def test_empty_labels_are_not_balanced_ones(text):
    with pytest.raises(UserError, match=r"^--labels is empty: this model's classes are 0 to 2 \(cat, dog, frog\)"):
        choose_labels(True, text, 4, 3, 0, PETS)
    assert choose_labels(True, None, 4, 3, 0, PETS).tolist() == [0, 1, 2, 0]


def test_of_many_classes_the_first_are_listed():
    names = [f"class{i}" for i in range(1000)]
    with pytest.raises(UserError, match=r"classes are 0 to 999 \(class0, class1, .*, class19, … 980 more\)$"):
        parse_labels("1000", 4, 1000, 0, names)
