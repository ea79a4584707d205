"""The attachments of generateContent requests: inline data, stored files, videos, web addresses."""

from __future__ import annotations

import re
from typing import Any

from pollux_flows.simulator.gemini.files import ORIGIN, find_active
from pollux_flows.simulator.media import is_base64, is_web_url
from pollux_flows.simulator.wire import BadRequest, Call

_FILE_PATH = re.compile(r"/v1(?:beta)?/(files/[\w-]+)")
_YOUTUBE = re.compile(r"https?://(www\.|m\.)?(youtube\.com/|youtu\.be/)")
_SECONDS = re.compile(r"\d+(\.\d{1,9})?s")
_MAX_FPS = 24.0
#: Types that no model reads, although any type may be uploaded.
_UNREADABLE = re.compile(
    r"application/(octet-stream|zip|gzip|msword|x-(?!javascript|python|ndjson|tex|yaml)|"
    r"vnd\.(openxmlformats|ms-|oasis)|epub)|font/|model/"
)


def check(call: Call, contents: list[dict[str, Any]]) -> None:
    """Refuse attachments that the model cannot read; collect the stored files in `call.files`."""
    for place, content in enumerate(contents):
        for index, part in enumerate(content.get("parts") or []):
            _check_part(call, part, f"contents[{place}].parts[{index}]")


def _check_part(call: Call, part: dict[str, Any], at: str) -> None:
    mime_type, is_youtube = "", False
    if "inlineData" in part:
        mime_type = part["inlineData"]["mimeType"]
        if not is_base64(part["inlineData"]["data"].replace("-", "+").replace("_", "/")):
            raise BadRequest(f"Invalid value at '{at}.inline_data.data' (TYPE_BYTES), Base64 decoding failed")
        if not mime_type:
            raise BadRequest(f"* GenerateContentRequest.{at}.inline_data.mime_type: must be set\n")
    if "fileData" in part:
        uri = part["fileData"]["fileUri"]
        mime_type = part["fileData"].get("mimeType") or ""
        is_youtube = _YOUTUBE.match(uri) is not None
        stored = stored_name(call, uri)
        if stored is not None:
            mime_type = _check_stored(call, uri, stored)
        elif not is_web_url(uri, "http", "https", "gs"):
            raise BadRequest(f"Invalid or unsupported file uri: {uri}")
    if _UNREADABLE.match(mime_type):
        raise BadRequest(f"Unsupported MIME type: {mime_type}")
    if "videoMetadata" in part:
        if not (is_youtube or mime_type.startswith("video/")):
            raise BadRequest(f"* GenerateContentRequest.{at}.video_metadata: may only be set on a video\n")
        _check_video(part["videoMetadata"], f"{at}.video_metadata")


def stored_name(call: Call, uri: str) -> str | None:
    """Return `files/…` if the URI is that of a stored file, at Google's address or the simulator's; else None."""
    for origin in (ORIGIN, f"{call.origin}/gemini"):
        if uri.startswith(origin) and (match := _FILE_PATH.fullmatch(uri.removeprefix(origin))):
            return match.group(1)
    return None


def _check_stored(call: Call, uri: str, name: str) -> str:
    file = find_active(call, name)
    call.files[uri] = file
    return file.mime_type


def _check_video(settings: dict[str, Any], at: str) -> None:
    seconds = {}
    for name, spelled in (("startOffset", "start_offset"), ("endOffset", "end_offset")):
        if name in settings:
            if not _SECONDS.fullmatch(settings[name]):
                raise BadRequest(
                    f"Invalid value at '{at}.{spelled}' (type.googleapis.com/google.protobuf.Duration), "
                    f'"{settings[name]}"'
                )
            seconds[name] = float(settings[name].removesuffix("s"))
    if len(seconds) > 1 and seconds["startOffset"] >= seconds["endOffset"]:
        raise BadRequest(f"* GenerateContentRequest.{at}: start_offset must be before end_offset\n")
    if "fps" in settings and not 0 < settings["fps"] <= _MAX_FPS:
        raise BadRequest(
            f"* GenerateContentRequest.{at}.fps: fps must be in the range (0.0, 24.0], but is {settings['fps']}\n"
        )
