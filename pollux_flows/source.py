"""Source: a text, file or address that a prompt is about."""

from __future__ import annotations

import json
import mimetypes
import re
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self, get_args

from pydantic import BaseModel, Field, StrictBool, StrictFloat, StrictInt, model_validator
from pydantic_core import from_json

from pollux_flows.address import (
    arxiv_pdf,
    check_fetchable,
    check_no_credentials,
    file_name,
    is_web,
    redact_address,
    redact_location,
)
from pollux_flows.document import Document
from pollux_flows.errors import PolluxError, SourceError
from pollux_flows.plain import Text, plain

SourceType = Literal["text", "json", "file", "uri", "youtube", "arxiv"]

_TYPES: Final = get_args(SourceType)
_INLINE: Final = {"text", "json"}
_OFFSET: Final = re.compile(r"\d{1,9}(\.\d{1,9})?s", re.ASCII)
_MIME_TYPE: Final = re.compile(r"[\w.+-]+/[\w.+-]+(;.*)?", re.ASCII)
_LONGEST_NAME: Final = 2048
_ARXIV: Final = re.compile(
    r"(?i:arxiv:)?(\d{4}\.\d{4,5}|[a-z][a-z-]+(\.[A-Z]{2})?/\d{7})(v\d+)?|https?://(www\.)?arxiv\.org/(abs|pdf)/\S+"
)
_YOUTUBE: Final = re.compile(r"https?://((www|m)\.)?(youtube\.com|youtu\.be)/")
_ADDRESS: Final = re.compile(r"[A-Za-z][\w+.-]+://\S.*")
# A path begins with its folder, or is one word with a file extension.
_PATH: Final = re.compile(r"(/|~/|\.{1,2}/|[A-Za-z]:[\\/]).+|[^\s:]+\.[A-Za-z][A-Za-z0-9]{1,4}")
_USUAL_MIME_TYPES: Final = {
    "text": "text/plain",
    "json": "application/json",
    "youtube": "video/mp4",
    "arxiv": "application/pdf",
}


class VideoSettings(Document):
    """The part of a video that Gemini sees, and its frame rate."""

    refusal: ClassVar[type[PolluxError]] = SourceError

    start_offset: Text | None = Field(default=None, description="Where to begin, such as 10s.")
    end_offset: Text | None = Field(default=None, description="Where to stop, such as 90s.")
    fps: StrictFloat | None = Field(default=None, gt=0, le=24, description="Frames a second, up to 24.")

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        if self.start_offset is None and self.end_offset is None and self.fps is None:
            raise SourceError(
                "Video settings need a start_offset, an end_offset or fps.", hint="Set one of them, or leave them out."
            )
        for name, offset in (("start_offset", self.start_offset), ("end_offset", self.end_offset)):
            if offset is not None and not _OFFSET.fullmatch(offset):
                raise SourceError(
                    f"{name} {offset!r} is not a duration.", hint="Write seconds, such as '90s' or '1.5s'."
                )
        if self.start_offset and self.end_offset and _seconds(self.end_offset) <= _seconds(self.start_offset):
            raise SourceError(
                f"The video would end at {self.end_offset}, before it starts at {self.start_offset}.",
                hint="Make end_offset later than start_offset.",
            )
        return self


class Source(Document):
    """An input for the model, made with `from_text`, `from_json`, `from_file` and so on.

    `text` is the content of text and JSON; all other content is named by `uri`, and read when it is needed.
    """

    refusal: ClassVar[type[PolluxError]] = SourceError

    source_type: SourceType = Field(description="text, json, file, uri, youtube or arxiv.")
    identifier: Text = Field(default="", description="A name for people; never sent to the model.")
    mime_type: Text = Field(default="", description="What kind of content it is.")
    trust_mime_type: StrictBool = Field(
        default=False, description="For a file: take mime_type as it is, whatever the content looks like."
    )
    size_bytes: StrictInt = Field(default=0, ge=0, le=2**53, description="Its size, where it is known.")
    text: Text | None = Field(default=None, description="The content itself, for text and json.")
    uri: Text | None = Field(  # not in the repr: its query may be secret
        default=None, repr=False, description="Where the content is, for everything else."
    )
    gemini_video: VideoSettings | None = Field(default=None, description="For Gemini: which part of a video.")
    gemini_url_context: StrictBool = Field(default=False, description="For Gemini: let it open the address itself.")

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        """Fill in the fields that handwritten JSON or a form leaves out."""
        if not isinstance(data, dict) or data.get("source_type") not in _TYPES:
            return data
        kind, text, uri = data["source_type"], data.get("text"), data.get("uri")
        inline = kind in _INLINE
        if inline and not isinstance(text, str):
            raise SourceError(f"A {kind} source needs its content.", hint="Write it into text, as a string.")
        if not inline and (not isinstance(uri, str) or not uri.strip()):
            raise SourceError(f"A source of type {kind} needs a uri.", hint="Write its path or address into uri.")
        filled = dict(data)
        if inline:
            filled["size_bytes"] = len(str(text).encode(errors="replace"))
        elif kind != "file":
            filled["uri"] = arxiv_pdf(uri) if kind == "arxiv" else str(uri).strip()
        if filled.get("identifier") in (None, "", filled.get("uri")):
            filled["identifier"] = str(text)[:50] if inline else _redacted_uri(kind, filled["uri"])
        if filled.get("mime_type") not in (None, ""):
            filled["mime_type"] = _lower(filled["mime_type"])
            filled.setdefault("trust_mime_type", kind == "file")
        else:
            guessed = _USUAL_MIME_TYPES.get(kind) or mimetypes.guess_type(file_name(str(uri)))[0]
            filled["mime_type"] = guessed or "application/octet-stream"
        return filled

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        unused = "uri" if self.source_type in _INLINE else "text"
        if getattr(self, unused) is not None:
            raise SourceError(f"A source of type {self.source_type} has no {unused}.", hint="Leave it out.")
        if not _MIME_TYPE.fullmatch(self.mime_type):
            raise SourceError(f"{self.mime_type!r} is not a MIME type.", hint="Write one such as 'application/pdf'.")
        if self.source_type == "json":
            _check_json(str(self.text))
        if self.source_type not in _INLINE:
            check_no_credentials(str(self.uri), path=self.source_type == "file")
        if self.source_type in {"uri", "youtube"}:
            check_fetchable(str(self.uri), web=self.source_type == "youtube")
        if self.gemini_video and self.source_type != "youtube" and not self.mime_type.startswith("video/"):
            raise SourceError(
                f"{self.identifier!r} is {self.mime_type}, not a video.",
                hint="Only YouTube and video/* sources can have video settings.",
            )
        if self.gemini_url_context and (self.source_type != "uri" or not is_web(str(self.uri))):
            raise SourceError(
                "Only an http or https address made by from_uri can be opened by Gemini itself.",
                hint="Use Source.from_uri('https://…').with_gemini_url_context(), or leave the setting out.",
            )
        return self

    @classmethod
    def from_text(cls, text: str, *, identifier: str | None = None) -> Source:
        """Make a source of a text, which is sent unchanged."""
        if not isinstance(text, str):
            raise SourceError(
                f"from_text takes a string, not {type(text).__name__}.", hint="Pass other values to Source.from_json."
            )
        return cls(source_type="text", text=text, identifier=identifier or "")

    @classmethod
    def from_json(cls, data: Any, *, identifier: str | None = None) -> Source:
        """Make a source of a dict, a list or a Pydantic model, which is sent as JSON text."""
        try:
            document = data.model_dump(mode="json") if isinstance(data, BaseModel) else data
            text = json.dumps(plain(document), ensure_ascii=False)
        except ValueError as error:
            raise SourceError(
                f"This {type(data).__name__} cannot become JSON: {error}.",
                hint="Pass dicts, lists, strings, finite numbers, booleans, None or a Pydantic model.",
            ) from None
        return cls(source_type="json", text=text, identifier=identifier or "json-data")

    @classmethod
    def from_file(cls, path: str | Path, *, mime_type: str | None = None) -> Source:
        """Make a source of a file, read where the flow runs: a path or an fsspec address (s3://…, gs://…, memory://…)."""
        if not isinstance(path, str | Path):
            raise SourceError(
                f"from_file takes a path, not {type(path).__name__}.", hint="Pass a string or a pathlib.Path."
            )
        name = str(path)
        return cls(
            source_type="file",
            uri=name,
            mime_type=mime_type or "",
            size_bytes=0 if "://" in name else _local_size(name),
        )

    @classmethod
    def from_uri(cls, uri: str, *, mime_type: str = "application/octet-stream") -> Source:
        """Make a source of an address that the provider fetches itself."""
        return cls(source_type="uri", uri=uri, mime_type=mime_type)

    @classmethod
    def from_youtube(cls, url: str) -> Source:
        """Make a source of a YouTube video, by its address."""
        return cls(source_type="youtube", uri=url)

    @classmethod
    def from_arxiv(cls, ref: str) -> Source:
        """Make a source of an arXiv paper, by its id or its address."""
        return cls(source_type="arxiv", uri=arxiv_pdf(ref))

    @classmethod
    def from_pasted(cls, pasted: str) -> Source:
        """Make a source of a pasted path, address, YouTube link, arXiv id or text.

        A single line that is an address or an arXiv id, or looks like a path, is read as such; all else is text.
        """
        line = pasted.strip()
        if not line or not line.isprintable() or len(line) > _LONGEST_NAME:
            return cls.from_text(pasted)
        if _ARXIV.fullmatch(line):
            return cls.from_arxiv(line.partition(":")[2] if line.lower().startswith("arxiv:") else line)
        if is_web(line):
            if _YOUTUBE.match(line):
                return cls.from_youtube(line)
            return cls.from_uri(line, mime_type="")
        if _ADDRESS.fullmatch(line) or _PATH.fullmatch(line):
            return cls(source_type="file", uri=line)
        return cls.from_text(pasted)

    def with_gemini_video_settings(
        self, *, start_offset: str | None = None, end_offset: str | None = None, fps: float | None = None
    ) -> Source:
        """Return a copy with video settings for Gemini: the part that it sees, and the frame rate."""
        settings = VideoSettings(start_offset=start_offset, end_offset=end_offset, fps=fps)
        return self.model_copy(update={"gemini_video": settings})

    def with_gemini_url_context(self) -> Source:
        """Return a copy whose address Gemini opens itself while it answers."""
        return self.model_copy(update={"gemini_url_context": True})


def _redacted_uri(kind: SourceType, uri: str) -> str:
    return redact_location(uri) if kind == "file" else redact_address(uri)


def _lower(mime_type: Any) -> Any:
    """Return the MIME type in lower case, but not its parameters, in which case may matter."""
    if not isinstance(mime_type, str):
        return mime_type
    kind, semicolon, parameters = mime_type.partition(";")
    return f"{kind.lower()}{semicolon}{parameters}"


def _local_size(path: str) -> int:
    """Return the size of a local file. Raises a SourceError if there is none: the path is likely wrong everywhere."""
    file = Path(path)
    try:
        size, missing = file.stat().st_size, None
    except (OSError, ValueError) as error:
        size, missing = 0, str(getattr(error, "strerror", None) or error)
    # Raised outside the handler, as the system's error quotes the path, which may be part of a URL with a password.
    if missing is not None:
        raise SourceError(
            f"There is no file {redact_location(path)!r} to read: {missing}.",
            hint="Check the path. Relative paths start in the working directory.",
        )
    if file.is_dir():
        raise SourceError(f"{redact_location(path)!r} is a directory.", hint="Pass its files one by one.")
    if not file.is_file():
        raise SourceError(
            f"{redact_location(path)!r} is not a regular file.", hint="Write its content into a file, and pass that."
        )
    return size


def _check_json(text: str) -> None:
    try:
        from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise SourceError(
            f"The text of a json source is not valid JSON: {error}.",
            hint="Make the source with Source.from_json(data).",
        ) from None


def _seconds(offset: str) -> float:
    return float(offset.removesuffix("s"))
