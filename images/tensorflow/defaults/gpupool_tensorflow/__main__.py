"""The command: ``python -m gpupool_tensorflow report [--json]`` and ``python -m gpupool_tensorflow check``."""

from __future__ import annotations

import argparse
import json
import sys


def main() -> int:
    """Run the command; 0 when it is well, 1 when the check did not pass."""
    parser = argparse.ArgumentParser(prog="python -m gpupool_tensorflow", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser("report", help="what was asked, applied, changed by you and is in force")
    report.add_argument("--json", action="store_true", help="as one JSON object")
    commands.add_parser("check", help="see whether TensorFlow works on the devices of this session")
    arguments = parser.parse_args()
    if arguments.command == "check":
        from gpupool_tensorflow import _check

        found = _check.check()
        print(json.dumps(found), flush=True)
        return 0 if found["passed"] else 1
    return _report(arguments.json)


def _report(as_json: bool) -> int:
    from gpupool_tensorflow import _hook, report

    _hook.start()
    try:
        import tensorflow

        # This process ends at once: here the devices may be initialised, so that nothing is left to wait.
        tensorflow.config.list_logical_devices()
        report(json=as_json)
    except ImportError as error:
        print(f"gpupool: there is nothing to report, TensorFlow cannot be imported: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
