"""What `info` prints for people: the figures of its JSON objects, in words."""

from itertools import groupby

from nvae_codec.wording import counted, printable

PAYLOADS = {
    "neural": "the network",
    "jpeg_xl": "JPEG XL",
    "jpeg": "JPEG XL of a JPEG file",
    "stored": "no more than deflating",
    "copy": "a copy",
}
TITLES = {"png": "PNG", "jpeg": "JPEG", "webp": "WebP", "tiff": "TIFF", "bmp": "BMP", "pnm": "PNM", "gif": "GIF"}


def describe(content: dict) -> list[str]:
    """The lines on an image's file, an archive or a model file."""
    if "groups" in content:
        return _model(content)
    lines = [f"format version {content['version']} (draft)"]
    lines += _archive(content) if "num_images" in content else _image(content)
    if "images" in content:
        lines.append("list of images:" + "".join(map(_image_line, content["images"])))
    return lines


def _image(content: dict) -> list[str]:
    metadata = ", ".join(f"{kind} of {size:,} bytes" for kind, size in content["metadata"].items()) or "none"
    rec_groups = ", ".join(_repeated(groups, len(list(alike))) for groups, alike in groupby(content["rec_groups"]))
    return [
        f"image: {_size(content)}",
        *_file_and_model(content),
        f"metadata: {metadata}",
        f"coded by {PAYLOADS[content['payload']]}: {content['payload_bytes']:,} bytes in {content['chunks']} chunk",
    ] + (
        [
            f"learning while coding: {'yes' if content['learning'] else 'no'}",
            f"tile batches: {content['tile_batches']:,}; groups of latents coded by REC in each: {rec_groups}",
            f"trellis bits of REC: {content['trellis_bits']}",
        ]
        if content["tile_batches"]
        else []
    )


def _archive(content: dict) -> list[str]:
    return [
        f"images: {content['num_images']:,}, of {counted(content['pixels'], 'pixel')} and "
        f"{counted(content['subpixels'], 'sub-pixel')}",
        *_file_and_model(content),
        f"headers and checksums: {content['header_bytes']:,} bytes",
        f"metadata: {content['metadata_bytes']:,} bytes",
        f"coded images: {content['payload_bytes']:,} bytes in {counted(content['chunks'], 'chunk')}; by "
        + ", ".join(f"{PAYLOADS[payload]} {count:,}" for payload, count in content["payloads"].items()),
        f"learning while coding: {'yes' if content['learning'] else 'no'}",
    ]


def _file_and_model(content: dict) -> list[str]:
    return [
        f"file: {content['bytes']:,} bytes, {content['bits_per_subpixel']:.4f} bits per sub-pixel",
        f"model: {content['model'] or 'unknown'}, fingerprint {content['fingerprint']}"
        if content["fingerprint"]
        else "model: none is needed",
    ]


def _model(content: dict) -> list[str]:
    initial, overhead = content["initial_bits"], content["rec_overhead"]
    return [
        f"file: {content['bytes']:,} bytes",
        f"fingerprint: {content['fingerprint']}",
        f"tiles: {content['tile_side']} x {content['tile_side']} pixels",
        f"architecture: {content['architecture']}",
        f"weights: {content['weights']:,}",
        f"latents: {content['latents_per_tile']:,} of each tile, in {counted(content['latent_groups'], 'group')}",
        f"latent channels: {content['latent_channels']:,}, of which {content['active_channels']:,} are active",
        f"pixels are coded {'by compiled code' if content['compiled'] else 'in Python, as nothing was compiled'}",
        f"initial bits: {'not measured' if initial is None else f'{initial:,}'}",
        *([] if overhead is None else [f"REC overhead: {100 * overhead:+.2f} %"]),
        *(f"{printable(key)}: {printable(text)}" for key, text in content["notes"].items()),
        "groups of latents, coarsest first:" + _latent_table(content["groups"]),
    ]


def _latent_table(groups: list[dict]) -> str:
    """A line for each group of latents of a model; the KL is the mean of the active channels."""
    rows = [("side", "active", "step", "KL bits per latent", "initial bits")]
    for group in groups:
        steps, kl = (
            [group[key][channel] for channel in group["active_channels"]] if group[key] else []
            for key in ("steps", "kl_bits_per_latent")
        )
        rows.append(
            (
                str(group["side"]),
                f"{group['active']}/{group['channels']}",
                " to ".join(map(str, sorted({min(steps), max(steps)}))) if steps else "-",
                f"{sum(kl) / len(kl):.4f}" if kl else "-",
                "-" if group["initial_bits"] is None else f"{group['initial_bits']:,}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join("\n    " + "  ".join(map(str.rjust, row, widths)) for row in rows)


def _image_line(image: dict) -> str:
    name = "no name" if image["name"] is None else printable(image["name"])
    return f"\n    {name}: {_size(image)}, {PAYLOADS[image['payload']]}, chunk {image['chunk']}"


def _size(image: dict) -> str:
    bits = "" if image["bits_per_sample"] == 8 else f", {image['bits_per_sample']} bits"
    alpha = " with alpha" if image["alpha"] else ""
    came = f" converted from {image['colours_from']}" if image["colours_from"] else ""
    kind = f", from {TITLES.get(image['format'], image['format'])}" if image["format"] else ""
    return f"{image['width']:,} x {image['height']:,} pixels, {image['colours']}{alpha}{came}{bits}{kind}"


def _repeated(value: int, times: int) -> str:
    return str(value) if times == 1 else f"{value} ({times} times)"
