"""Serve the flows from this machine: `python deployments/serve.py`, against the Prefect server of your profile.

The command `pollux-flows serve` does this, too. Copy this file to serve flows of your own together with these.
"""

from prefect import serve

from pollux_flows.blocks.registration import register_block_types
from pollux_flows.deployments import deployments

if __name__ == "__main__":
    register_block_types()
    serve(*deployments())
