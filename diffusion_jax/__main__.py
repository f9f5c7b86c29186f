"""`diffusion-jax COMMAND …`, also `python -m diffusion_jax COMMAND …`."""

import errno
import importlib
import re
import sys
import traceback
from collections.abc import Sequence

from absl import flags

from diffusion_jax.config import OVERRIDE
from diffusion_jax.errors import UserError, did_you_mean
from diffusion_jax.files import cache_folder

# Each names a module of `diffusion_jax.commands` with a docstring, `define_flags(values)` and `run(values)`.
COMMANDS = ("train", "sweep", "encode", "sample", "evaluate", "reference", "models", "samplers", "ema", "plan")


# By the number of the system's error.
REMEDIES = {
    errno.ENOSPC: "free some space there, or name another place",
    errno.EDQUOT: "free some of your quota, or name another place",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EACCES: "name a place that you may read and write",
    errno.EPERM: "name a place that you may read and write",
    errno.EROFS: "name a place that can be written to",
    errno.ENOTDIR: "a file stands where a folder is needed; name another place",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits: status 0, 2 for a mistake of the user's, 1 for one of ours.

    Args:
      arguments: the words behind the program's name; None takes them from the command line.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return
    try:
        run(words[0], words[1:])
    except OSError as error:
        if error.filename is None or "--debug" in words:
            raise
        remedy = REMEDIES.get(error.errno or 0, "name another place")
        print(f"diffusion-jax {words[0]}: {error.filename}: {error.strerror}: {remedy}", file=sys.stderr)
        sys.exit(2)
    except UserError as error:
        if "--debug" in words:
            traceback.print_exc()
        print(f"diffusion-jax {words[0]}: {error}", file=sys.stderr)
        sys.exit(2)


def run(name: str, arguments: Sequence[str]) -> None:
    """Parses the arguments of a command and runs it.

    Raises:
      UserError: unknown command, flag or value.
    """
    if name not in COMMANDS:
        raise UserError(f"'{name}' is not a command{did_you_mean(name, COMMANDS)}")
    command = importlib.import_module(f"diffusion_jax.commands.{name}")
    values = flags.FlagValues()
    command.define_flags(values)
    flags.DEFINE_bool("debug", False, "Show the traceback of a mistake too.", flag_values=values)
    overrides = "overrides" in values
    if any(word in ("-h", "--help") for word in arguments):
        print(help_text(name, command.__doc__ or "", values))
        return
    own, config_words = split_overrides([with_underscores(word) for word in arguments])
    if config_words and not overrides:
        raise UserError(f"{config_words[0]}: {name} takes no config overrides")
    try:
        rest = values([name, *own])[1:]
    except flags.Error as error:
        raise UserError(flag_error(error, values)) from None
    if rest:
        raise UserError(f"'{rest[0]}' is not a flag: flags begin with two dashes; see diffusion-jax {name} --help")
    if overrides:
        values["overrides"].value = config_words
    from diffusion_jax.parallel.hardware import prepare_cpu

    prepare_cpu()
    enable_compilation_cache()
    command.run(values)


def with_underscores(word: str) -> str:
    """Lets users write --num-steps for the flag num_steps and --no-flip for noflip; values and overrides stay."""
    if not word.startswith("--") or word.startswith(OVERRIDE):
        return word
    flag, equals, value = word.partition("=")
    flag = re.sub("^--no-", "--no", flag)
    return "--" + flag[2:].replace("-", "_") + equals + value


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Parts the flags of a command from `--config.section.key=value` (or `--config.section.key value`)."""
    own: list[str] = []
    overrides: list[str] = []
    waiting = False
    for word in words:
        if word.startswith(OVERRIDE):
            overrides.append(word)
            waiting = "=" not in word
        elif waiting and not word.startswith("--"):
            overrides.append(word)
            waiting = False
        else:
            own.append(word)
            waiting = False
    return own, overrides


def flag_error(error: flags.Error, values: flags.FlagValues) -> str:
    """One line for an absl flag error, naming the nearest flag where one is unknown."""
    if isinstance(error, flags.UnrecognizedFlagError):
        known = [flag.replace("_", "-") for flag in values if flag not in ("overrides",)]
        return (
            f"--{error.flagname.replace('_', '-')} is not a flag{did_you_mean(error.flagname.replace('_', '-'), known)}"
        )
    missing = re.match(r"flag --(\w+)=None: Flag", str(error))
    if missing:
        return f"--{missing[1].replace('_', '-')} is missing: {values[missing[1]].help}"
    return " ".join(str(error).split()).replace("flag --", "--", 1)


def help_text(name: str, doc: str, values: flags.FlagValues) -> str:
    """The command's docstring and a table of its flags."""
    lines = [f"diffusion-jax {name}: {doc.strip()}", "", "Flags:"]
    for flag in sorted(values):
        if flag == "overrides":
            continue
        spec = values[flag]
        default = ", ".join(spec.default) if isinstance(spec.default, list) else spec.default
        default = f" (default: {default})" if default not in (None, False, "") else ""
        lines.append(f"  --{flag.replace('_', '-'):<15} {spec.help}{default}")
    return "\n".join(lines)


def overview() -> str:
    """The table of commands with the first line of each one's docstring."""
    lines = ["usage: diffusion-jax COMMAND [FLAGS]     (each command explains itself with --help)", ""]
    for name in COMMANDS:
        command = importlib.import_module(f"diffusion_jax.commands.{name}")
        lines.append(f"  {name:<10} {(command.__doc__ or '').strip().splitlines()[0]}")
    return "\n".join(lines)


def enable_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, unless JAX has been told of another one."""
    import jax

    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


if __name__ == "__main__":
    main()
