"""The flows that people deploy, each in a sync form and an async one with an `a` in front."""

from pollux_flows.flows.broadcast import abroadcast, broadcast
from pollux_flows.flows.cancel import acancel, cancel
from pollux_flows.flows.collect import acollect, collect
from pollux_flows.flows.converse import aconverse, converse
from pollux_flows.flows.deferred import adeferred, deferred
from pollux_flows.flows.estimate import aestimate, estimate
from pollux_flows.flows.fan_in import afan_in, fan_in
from pollux_flows.flows.fan_out import afan_out, fan_out
from pollux_flows.flows.map_rows import amap_rows, map_rows
from pollux_flows.flows.realtime import arealtime, realtime
from pollux_flows.flows.resubmit import aresubmit, resubmit
from pollux_flows.flows.submit import asubmit, submit
from pollux_flows.flows.sweep import asweep, sweep
from pollux_flows.flows.wait_for import await_for, wait_for
from pollux_flows.flows.warm_cache import awarm_cache, warm_cache

__all__ = [
    "abroadcast",
    "acancel",
    "acollect",
    "aconverse",
    "adeferred",
    "aestimate",
    "afan_in",
    "afan_out",
    "amap_rows",
    "arealtime",
    "aresubmit",
    "asubmit",
    "asweep",
    "await_for",
    "awarm_cache",
    "broadcast",
    "cancel",
    "collect",
    "converse",
    "deferred",
    "estimate",
    "fan_in",
    "fan_out",
    "map_rows",
    "realtime",
    "resubmit",
    "submit",
    "sweep",
    "wait_for",
    "warm_cache",
]
