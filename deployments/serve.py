"""Serve the flows from this machine: `python deployments/serve.py`, against the Prefect server of your profile.

Those that look after what others have started run on a schedule; the others are started from the UI, from automations
or from code. Copy this file and make it yours.
"""

from datetime import timedelta

from prefect import serve

from pollux_flows.flows import broadcast, cancel, collect, deferred, fan_in, fan_out, realtime, resubmit, submit, sweep

if __name__ == "__main__":
    serve(
        # A look at all jobs costs a few requests, however many they are. Runs may overlap.
        collect.to_deployment("collect", interval=timedelta(minutes=10)),
        sweep.to_deployment("sweep", cron="17 3 * * *"),
        submit.to_deployment("submit"),
        # It is suspended while the provider works, and resumed by collect.
        deferred.to_deployment("deferred"),
        cancel.to_deployment("cancel"),
        resubmit.to_deployment("resubmit"),
        realtime.to_deployment("realtime"),
        fan_out.to_deployment("fan-out"),
        fan_in.to_deployment("fan-in"),
        broadcast.to_deployment("broadcast"),
    )
