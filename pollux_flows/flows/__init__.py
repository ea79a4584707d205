"""The flows that people deploy, each in a sync form and an async one with an `a` in front."""

from pollux_flows.flows.broadcast import abroadcast, broadcast
from pollux_flows.flows.fan_in import afan_in, fan_in
from pollux_flows.flows.fan_out import afan_out, fan_out
from pollux_flows.flows.realtime import arealtime, realtime
from pollux_flows.flows.sweep import asweep, sweep

__all__ = [
    "abroadcast",
    "afan_in",
    "afan_out",
    "arealtime",
    "asweep",
    "broadcast",
    "fan_in",
    "fan_out",
    "realtime",
    "sweep",
]
