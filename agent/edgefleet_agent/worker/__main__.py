"""A worker as a program of its own, where forking is not possible: `--fd N` is its socket."""

from __future__ import annotations

import argparse

from edgefleet_agent.worker import serving

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True)
    serving.main(parser.parse_args().fd)
