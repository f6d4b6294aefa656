"""The command line itself: its help, its plug-in commands and how it fails."""

import argparse
import os
import subprocess
import sys
import types
from importlib.metadata import EntryPoint

import pytest

from videoar import __version__
from videoar.runtime import cli, cli_arguments, modules
from videoar.runtime.cli import main
from videoar.runtime.errors import CapacityError


def leaves(parser: argparse.ArgumentParser):
    """Every command's parser with its arguments, commands of commands included."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from leaves(child)
        else:
            yield parser, action


class TestParser:
    def test_every_argument_has_help(self):
        bare = [f"{p.prog} {a.dest}" for p, a in leaves(cli.build_parser()) if not a.help]
        assert not bare

    def test_help_shows_defaults_but_no_none(self):
        for parser in {parser for parser, _ in leaves(cli.build_parser())}:
            text = parser.format_help()
            assert "default: None" not in text
            assert "default: False" not in text
        assert "(default: out.mp4)" in " ".join(self.help_of("generate").split())

    @staticmethod
    def help_of(command: str) -> str:
        return next(
            parser.format_help()
            for parser, _ in leaves(cli.build_parser())
            if parser.prog == f"videoar {command}"
        )

    def test_names_of_dtypes_are_those_of_the_networks(self):
        assert list(cli_arguments.DTYPES) == list(modules.DTYPES)

    def test_version(self, capsys):
        with pytest.raises(SystemExit) as stop:
            main(["--version"])
        assert stop.value.code == 0
        assert capsys.readouterr().out == f"videoar {__version__}\n"

    def test_help_does_not_import_torch(self):
        code = (
            "import sys; from videoar.runtime.cli import main\n"
            "try: main(['--help'])\n"
            "except SystemExit: print('\\nloaded', *(m for m in sys.modules if '.' not in m))"
        )
        command = [sys.executable, "-c", code]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        loaded = out.rsplit("loaded", 1)[1].split()
        assert "generate" in out
        assert {"torch", "numpy", "av", "tqdm"}.isdisjoint(loaded)

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            ([], "the following arguments are required: COMMAND"),
            (["paint"], "invalid choice: 'paint'"),
            (["generate", "x", "--seed", "red"], "argument --seed: invalid int value: 'red'"),
            (["generate", "x", "--scale", "0"], "must be 1 or more, got 0; nearest: 1"),
            (["generate", "x", "--dtype", "int8"], "invalid choice: 'int8'"),
            (["generate", "x", "--num", "5"], "unrecognized arguments: --num"),
            (["generate", "x", "--model", "a", "--preset", "b"], "not allowed with argument"),
            (["reconstruct", "a.mp4"], "the following arguments are required: -o/--output"),
        ],
    )
    def test_bad_arguments_are_one_line_and_status_2(self, argv, message, capsys):
        assert main(argv) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("videoar: error: ")
        assert err.count("\n") == 1
        assert message in err


class TestPlugins:
    @pytest.fixture
    def plugins(self, monkeypatch):
        module = types.ModuleType("videoar_test_plugin")

        def add(commands):
            parser = commands.add_parser("shout", help="say it loudly")
            parser.add_argument("word", help="what to say")
            parser.set_defaults(run=lambda args: print(args.word.upper()))

        module.add = add
        monkeypatch.setitem(sys.modules, "videoar_test_plugin", module)
        points = [
            EntryPoint("train", "videoar_no_such_module:add", cli.PLUGINS),
            EntryPoint("shout", "videoar_test_plugin:add", cli.PLUGINS),
        ]
        monkeypatch.setattr(cli, "entry_points", lambda group: points)

    def test_a_plugin_runs(self, plugins, capsys):
        assert main(["shout", "hello"]) == 0
        assert capsys.readouterr().out == "HELLO\n"

    def test_a_broken_plugin_is_reported_when_asked_for(self, plugins, capsys):
        assert main(["train"]) == 1
        err = capsys.readouterr().err
        assert "train: cannot be loaded (ModuleNotFoundError: No module named" in err
        assert "\n" not in err[:-1]

    def test_a_broken_plugin_does_not_break_help(self, plugins):
        text = cli.build_parser().format_help()
        assert "cannot be loaded" in text
        assert "say it loudly" in text

    def test_other_commands_import_no_plugin(self, plugins):
        del sys.modules["videoar_test_plugin"]
        assert main(["inspect", "--preset", "digits"]) == 0


class TestFailures:
    @pytest.fixture
    def failing(self, monkeypatch):
        """Makes `videoar inspect` end with an error."""

        def set_error(error: BaseException):
            def run(args):
                raise error

            monkeypatch.setattr("videoar.runtime.cli_inspect.run", run)

        return set_error

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (ValueError("field: two\nlines"), 2),
            (CapacityError("cache", needed=2, available=1), 1),
            (FileNotFoundError(2, "No such file", "x"), 1),
            (ImportError("needs the extra train"), 1),
        ],
    )
    def test_expected_errors_are_one_line(self, failing, capsys, error, status):
        failing(error)
        assert main(["inspect"]) == status
        err = capsys.readouterr().err
        assert err == f"videoar: error: {' '.join(str(error).split())}\n"

    def test_debug_gives_the_traceback(self, failing, monkeypatch):
        failing(ValueError("field: bad"))
        monkeypatch.setenv("VIDEOAR_DEBUG", "1")
        with pytest.raises(ValueError, match="field: bad"):
            main(["inspect"])

    def test_bugs_keep_their_traceback(self, failing):
        failing(KeyError("bug"))
        with pytest.raises(KeyError):
            main(["inspect"])

    def test_a_closed_pipe_is_quiet(self, monkeypatch, capsys):
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "w") as stdout:
            monkeypatch.setattr(sys, "stdout", stdout)
            assert main(["inspect", "--preset", "digits"]) == 1
        assert capsys.readouterr().err == ""

    def test_ctrl_c_leaves_no_file(self, tiny_folder, tmp_path):
        # The signal comes in the middle of writing, where half a file is there.
        code = (
            "import os, signal, sys, time\n"
            "from videoar.runtime import media_write\n"
            "from videoar.runtime.cli import main\n"
            "def write(path, clip, rate):\n"
            "    path.write_bytes(b'half')\n"
            "    os.kill(os.getpid(), signal.SIGINT)\n"
            "    time.sleep(60)\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "media_write._WRITERS['.mp4'] = write\n"
            "sys.exit(main(sys.argv[1:]))\n"
        )
        words = ["generate", "a red 3", "--num-frames", "1", "--model", tiny_folder]
        command = [sys.executable, "-c", code, *words, "-o", tmp_path / "a.mp4"]
        process = subprocess.run(command, capture_output=True, text=True)
        assert process.returncode == 130
        assert process.stderr == "videoar: interrupted\n"
        assert process.stdout == ""
        assert not list(tmp_path.iterdir())
