"""Source: what to look at."""

from __future__ import annotations

import json
import mimetypes
import re
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self, get_args
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, Field, StrictBool, StrictFloat, StrictInt, model_validator
from pydantic_core import from_json

from pollux_flows.document import Document
from pollux_flows.errors import PolluxError, SourceError
from pollux_flows.plain import Text, plain

SourceType = Literal["text", "json", "file", "uri", "youtube", "arxiv"]

_TYPES: Final = get_args(SourceType)
_INLINE: Final = {"text", "json"}
_ARXIV_ID: Final = re.compile(r"(\d{4}\.\d{4,5}|[a-z][a-z.-]*(\.[A-Z]{2})?/\d{7})(v\d+)?", re.ASCII)
_OFFSET: Final = re.compile(r"\d{1,9}(\.\d{1,9})?s", re.ASCII)
_MIME_TYPE: Final = re.compile(r"[\w.+-]+/[\w.+-]+(;.*)?", re.ASCII)
_USUAL_MIME_TYPES: Final = {
    "text": "text/plain",
    "json": "application/json",
    "youtube": "video/mp4",
    "arxiv": "application/pdf",
}


class VideoSettings(Document):
    """Which part of a video Gemini looks at, and how often."""

    refusal: ClassVar[type[PolluxError]] = SourceError

    start_offset: Text | None = Field(default=None, description="Where to begin, such as 10s.")
    end_offset: Text | None = Field(default=None, description="Where to stop, such as 90s.")
    fps: StrictFloat | None = Field(default=None, gt=0, le=24, description="Frames a second, up to 24.")

    @model_validator(mode="after")
    def _says_something_sensible(self) -> Self:
        if self.start_offset is None and self.end_offset is None and self.fps is None:
            raise SourceError("Video settings need a start_offset, an end_offset or fps.")
        for name, offset in (("start_offset", self.start_offset), ("end_offset", self.end_offset)):
            if offset is not None and not _OFFSET.fullmatch(offset):
                raise SourceError(f"{name} {offset!r} is no duration.", hint="Write seconds, such as '90s' or '1.5s'.")
        if self.start_offset and self.end_offset and _seconds(self.end_offset) <= _seconds(self.start_offset):
            raise SourceError(f"The video would end at {self.end_offset}, before it starts at {self.start_offset}.")
        return self


class Source(Document):
    """Something for the model to look at: make one with `from_text`, `from_json`, `from_file` and so on.

    `text` holds the content of text and JSON; everything else is named by `uri` and read where it is needed.
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
    uri: Text | None = Field(default=None, description="Where the content is, for everything else.")
    gemini_video: VideoSettings | None = Field(default=None, description="For Gemini: which part of a video.")
    gemini_url_context: StrictBool = Field(default=False, description="For Gemini: let it open the address itself.")

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        """Fill what a person who writes JSON or fills in a form leaves out."""
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
            filled["uri"] = _arxiv_pdf(uri) if kind == "arxiv" else str(uri).strip()
        if filled.get("identifier") in (None, ""):
            filled["identifier"] = str(text)[:50] if inline else filled["uri"]
        if filled.get("mime_type") not in (None, ""):
            filled.setdefault("trust_mime_type", kind == "file")
        else:
            guessed = _USUAL_MIME_TYPES.get(kind) or mimetypes.guess_type(str(uri))[0]
            filled["mime_type"] = guessed or "application/octet-stream"
        return filled

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        unused = "uri" if self.source_type in _INLINE else "text"
        if getattr(self, unused) is not None:
            raise SourceError(f"A source of type {self.source_type} has no {unused}.", hint="Leave it out.")
        if not _MIME_TYPE.fullmatch(self.mime_type):
            raise SourceError(f"{self.mime_type!r} is no MIME type.", hint="Write one such as 'application/pdf'.")
        if self.source_type == "json":
            _check_json(str(self.text))
        if self.source_type not in _INLINE:
            _check_no_credentials(str(self.uri))
        if self.source_type in {"uri", "youtube"}:
            _check_address(str(self.uri), web=self.source_type == "youtube")
        if self.gemini_video and self.source_type != "youtube" and not self.mime_type.startswith("video/"):
            raise SourceError(
                f"{self.identifier!r} is {self.mime_type}, not a video.",
                hint="Video settings go on YouTube and video/* sources.",
            )
        if self.gemini_url_context and (self.source_type != "uri" or not _is_web(_parts(str(self.uri)))):
            raise SourceError("Only an http or https address made by from_uri can be opened by Gemini itself.")
        return self

    @classmethod
    def from_text(cls, text: str, *, identifier: str | None = None) -> Source:
        """A piece of text, sent as it stands."""
        if not isinstance(text, str):
            raise SourceError(f"from_text takes a string, not {type(text).__name__}.")
        return cls(source_type="text", text=text, identifier=identifier or "")

    @classmethod
    def from_json(cls, data: Any, *, identifier: str | None = None) -> Source:
        """A value that goes to the model as JSON text: a dict, a list or a Pydantic model."""
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
        """A file, read where the flow runs: a path, or any address that fsspec opens (s3://…, gs://…, memory://…)."""
        if not isinstance(path, str | Path):
            raise SourceError(f"from_file takes a path, not {type(path).__name__}.")
        name = str(path)
        return cls(
            source_type="file",
            uri=name,
            mime_type=mime_type or "",
            size_bytes=0 if "://" in name else _local_size(name),
        )

    @classmethod
    def from_uri(cls, uri: str, *, mime_type: str = "application/octet-stream") -> Source:
        """Something the provider fetches itself."""
        return cls(source_type="uri", uri=uri, mime_type=mime_type)

    @classmethod
    def from_youtube(cls, url: str) -> Source:
        """A YouTube video, by its address."""
        return cls(source_type="youtube", uri=url)

    @classmethod
    def from_arxiv(cls, ref: str) -> Source:
        """An arXiv paper, by its id or its address."""
        return cls(source_type="arxiv", uri=_arxiv_pdf(ref))

    def with_gemini_video_settings(
        self, *, start_offset: str | None = None, end_offset: str | None = None, fps: float | None = None
    ) -> Source:
        """The same video, but Gemini sees only this part of it or at this rate."""
        settings = VideoSettings(start_offset=start_offset, end_offset=end_offset, fps=fps)
        return self.model_copy(update={"gemini_video": settings})

    def with_gemini_url_context(self) -> Source:
        """The same address, but Gemini opens it itself while it answers."""
        return self.model_copy(update={"gemini_url_context": True})


def _local_size(path: str) -> int:
    """The size of a file that is here, or an error: a path that is wrong here is most likely wrong everywhere."""
    file = Path(path)
    try:
        size = file.stat().st_size
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise SourceError(
            f"There is no file {path!r} to read: {said}.",
            hint="Check the path; relative paths start where the program does.",
        ) from None
    if not file.is_file():
        raise SourceError(f"{path!r} is not a file.", hint="Pass its files one by one.")
    return size


def _check_json(text: str) -> None:
    try:
        from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise SourceError(
            f"The text of a json source is no JSON: {error}.", hint="Make the source with Source.from_json(data)."
        ) from None


def _parts(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def _is_web(parts: SplitResult) -> bool:
    return parts.scheme in {"http", "https"} and parts.netloc != ""


def _check_address(address: str, *, web: bool) -> None:
    parts = _parts(address)
    whole = _is_web(parts) if web or parts.scheme in {"http", "https"} else parts.scheme != ""
    # urlsplit() overlooks line breaks; whoever fetches the address would not.
    if not whole or not address.isprintable():
        raise SourceError(
            f"{address!r} is no whole address.", hint="Write it with its scheme, such as 'https://example.com/a.pdf'."
        )


def _check_no_credentials(address: str) -> None:
    """An address is stored and logged, so what it says in secret is refused, without being repeated."""
    for link in address.split("::"):
        if re.match(r"[A-Za-z][\w+.-]*://[^/?#]*@", link):
            raise SourceError(
                "The address holds a user name or a password.",
                hint="Sign in with the environment's own credentials, or download the file first.",
            )


def _arxiv_pdf(ref: Any) -> str:
    if not isinstance(ref, str):
        raise SourceError(f"from_arxiv takes a string, not {type(ref).__name__}.")
    name = ref.strip()
    if name.startswith(("http://", "https://")):
        address = _parts(name)
        folder, _, name = address.path.lstrip("/").partition("/")
        if address.hostname not in {"arxiv.org", "www.arxiv.org"} or folder not in {"abs", "pdf"}:
            raise SourceError(
                f"{ref!r} is not an arXiv abstract or PDF.",
                hint="Write an id such as '2301.07041', or its /abs/ or /pdf/ address.",
            )
    name = name.removesuffix(".pdf")
    if not _ARXIV_ID.fullmatch(name):
        raise SourceError(
            f"{ref!r} is no arXiv id.", hint="Write one such as '2301.07041', '2301.07041v2' or 'cs/0112017'."
        )
    return f"https://arxiv.org/pdf/{name}.pdf"


def _seconds(offset: str) -> float:
    return float(offset.removesuffix("s"))
