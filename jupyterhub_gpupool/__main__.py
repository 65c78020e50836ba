"""The ``gpupool`` command."""

from __future__ import annotations

import argparse
import os
import sys

from . import __version__, looking
from . import commands as ledger_commands


def main(argv: list[str] | None = None) -> int:
    """Run one of the commands; returns the exit status."""
    parser = argparse.ArgumentParser(prog="gpupool", description=__doc__)
    parser.add_argument("--version", action="version", version=f"gpupool {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    service = commands.add_parser("service", help="run the hub service; the hub starts it by itself")
    service.add_argument("config", help="the JSON file that configure() wrote")
    commands.add_parser("generate-config", help="print every setting with its help, as a configuration file")
    simulate = commands.add_parser(
        "simulate", help="make a simulated GPU sick, lost or silent, or well again"
    )
    simulate.add_argument("device", help="its number or id")
    simulate.add_argument("fault", choices=["sick", "lost", "silent", "well"])
    state = os.environ.get("GPUPOOL_STATE_DIR") or ".gpupool"
    simulate.add_argument(
        "--faults-file",
        default=os.path.join(state, "faults.json"),
        help="SimulatedDevices.faults_file of the hub (default: the demo's, %(default)s)",
    )
    looking.add(commands)
    ledger_commands.add(commands)
    chosen = parser.parse_args(argv)
    if "look" in chosen:
        return looking.run(chosen, sys.stdout)
    if "run" in chosen:
        return ledger_commands.run(chosen, sys.stdout)
    if chosen.command == "service":
        from .service.app import main as serve

        serve(chosen.config)
    elif chosen.command == "simulate":
        from .devices.simulated import set_fault

        set_fault(chosen.faults_file, chosen.device, None if chosen.fault == "well" else chosen.fault)
    else:
        print_config()
    return 0


def print_config() -> None:
    """Print the settings of the pool and of the spawners whose packages are installed."""
    from .configuration import BACKENDS, SECTIONS, spawner_of

    for owner in SECTIONS.values():
        print(owner.class_config_section([owner]))
    for backend in sorted(BACKENDS):
        try:
            spawner = spawner_of(backend)
        except SystemExit as missing:
            print(f"# {missing}\n")
        else:
            print(spawner.class_config_section([spawner]))


if __name__ == "__main__":
    sys.exit(main())
