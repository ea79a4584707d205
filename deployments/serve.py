"""Serve the flows from this machine: `python deployments/serve.py`, against the Prefect server of your profile.

As `pollux-flows serve` does it; copy this file, and serve flows of your own beside ours.
"""

from prefect import serve

from pollux_flows.blocks.registration import register_block_types
from pollux_flows.deployments import deployments

if __name__ == "__main__":
    register_block_types()
    serve(*deployments())
