"""A second decoder of the container, written from FORMAT.md alone."""

import zlib


class Refused(Exception):
    pass


def require(condition: bool) -> None:
    if not condition:
        raise Refused


class Fields:
    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, length):
        self.at += length
        require(self.at <= len(self.data))
        return self.data[self.at - length : self.at]

    def u(self, length):
        return int.from_bytes(self.take(length), "little")

    def varint(self, low, high):
        value = 0
        for place in range(5):
            byte = self.u(1)
            value += byte % 128 * 128**place
            if byte < 128:
                require((byte > 0 or place == 0) and low <= value <= high)
                return value
        raise Refused

    def checked(self, length, crc):
        data = self.take(length)
        require(zlib.crc32(data) == crc)
        return data

    def item_row(self):
        kind, encoding, length, stored = self.u(1), self.u(1), self.varint(1, 2**24), self.varint(1, 2**24)
        require((1 <= kind <= 6 or kind >= 128) and encoding in (0, 1))
        require(stored == length if encoding == 0 else stored < length)
        return kind, encoding, length, stored, self.u(4)

    def item(self, kind, encoding, length, stored, crc):
        data = self.checked(stored, crc)
        return kind, inflated(data, length) if encoding else data


def inflated(data, length):
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(data, length + 1)
    except zlib.error:
        raise Refused from None
    require(inflater.eof and not inflater.unused_data and len(data) == length)
    return data


def check_kinds(references, rows):
    for one in references:
        require(all(index < len(rows) for index in one))
        require(len({rows[index][0] for index in one}) == len(one))
    require({index for one in references for index in one} == set(range(len(rows))))


def second_decoder(file: bytes) -> tuple:
    """The content as nested tuples, in the order of Container's fields. Raises Refused."""
    f = Fields(file)
    require(f.take(7) == b"\x89NVB\r\n\1")
    fingerprint, chunks, left = f.take(8), [], None
    while left != 0:
        begin = f.at
        require(f.u(1) == 0xB5)
        number = f.varint(0, 2**35 - 1)
        require(left is None or number == left - 1)
        left = number
        body = f.take(f.varint(1, 4_194_304))
        require(f.u(4) == zlib.crc32(f.data[:15] + f.data[begin : f.at - 4]))
        images, rows, shared, tile_batches, trellis, words, learns, blobs = header_of_chunk(body, first=not chunks)
        items = tuple(f.item(*row) for row in rows)
        words = f.checked(*words) if words else b""
        blobs, crc = blobs
        blobs = tuple(f.take(length) for length in blobs)
        require(not blobs or zlib.crc32(b"".join(blobs)) == crc)
        chunks.append((images, items, tile_batches, trellis, words, shared, learns, blobs))
    require(f.at == len(f.data))
    names = [image[5] for chunk in chunks for image in chunk[0]]
    require(len(set(names)) == len(names) and ("" not in names or len(names) == 1))
    require(len(names) <= 2**20 and sum(len(chunk[2]) for chunk in chunks) <= max(2**22, len(file) // 16))
    require(sum(len(data) for chunk in chunks for _, data in chunk[1]) <= 2**28)
    require(sum(image[0] * image[1] for chunk in chunks for image in chunk[0]) <= max(2**27, 65_536 * len(file)))
    return fingerprint, tuple(chunks)


def header_of_chunk(body, first):
    f = Fields(body)
    flags = f.u(1)
    require(flags < 128 and bool(flags & 8) == first and (flags & 1 or not flags & 16))
    if flags & 4:
        length = f.varint(1, 2**24)
        f = Fields(inflated(body[f.at :], length))
    images = range(f.varint(1, 2**20))
    sides = [[f.varint(1, 2**24) for _ in images] for _ in "wh"]
    areas = [width * height for width, height in zip(*sides, strict=True)]
    require(sum(areas) <= 2**27)
    kinds = kinds_of_images(f, len(images), mixed=flags >= 64)
    checksums = [f.u(4 if area >= 4096 else 0 if flags & 16 else 2) for area in areas]
    shared = f.u(4) if flags & 16 and min(areas) < 4096 else None
    names = [""] * len(images)
    for image in images if flags & 1 else ():
        names[image] = name_of_image(f, names[image - 1] if flags & 16 and image else None)
    rows, references = [], [()] * len(images)
    if flags & 2:
        rows = [f.item_row() for _ in range(f.varint(1, 16 * len(images)))]
        references = [tuple(f.varint(0, 2**35) for _ in range(f.varint(0, 16))) for _ in images]
    check_kinds(references, rows)
    for one, (_, _, _, form, _, _) in zip(references, kinds, strict=True):
        require(form not in (0, 15) or 6 not in {rows[index][0] for index in one})
    tile_batches, trellis, words = [], 0, None
    if any(payload == 0 for _, _, _, _, payload, _ in kinds):
        tile_batches, trellis, words = stack_of_chunk(f)
    else:
        require(not flags & 32)
    distances, blobs = [0] * len(images), ([], 0)
    if flags & 64:
        for image in images:
            if kinds[image][4] == 7:
                distances[image] = f.varint(1, 2**35)
                require(distances[image] <= image)
                original = image - distances[image]
                require(kinds[original][4] != 7 and kinds[original][:4] == kinds[image][:4])
                require(all(side[original] == side[image] for side in sides))
        blobs = [
            f.varint(payload == 5, 2**35)
            for _, alpha, _, _, payload, _ in kinds
            if 0 < payload < 7 or payload == 0 and alpha
        ]
        blobs = blobs, f.u(4) if blobs else 0
    require(f.at == len(f.data))
    images = tuple(
        (*head, *kind, distance)
        for *head, kind, distance in zip(
            *sides, (kind[0] for kind in kinds), checksums, references, names, (kind[1:] for kind in kinds), distances,
            strict=True,
        )
    )  # fmt: skip
    return images, rows, shared, tuple(tile_batches), trellis, words, bool(flags & 32), blobs


def kinds_of_images(f, count, mixed):
    """Mode, alpha, depth, format, payload and variant of each image."""
    modes = [f.u(1) for _ in range(count)]
    payloads = [f.u(1) if mixed else 0 for _ in range(count)]
    depths = [f.u(1) if mixed else 8 for _ in range(count)]
    kinds = []
    for first, payload, depth in zip(modes, payloads, depths, strict=True):
        mode, alpha, form, payload, variant = first % 8, first % 16 >= 8, first // 16, payload % 16, payload // 16
        require(mode <= 5 and payload <= 7 and 1 <= depth <= 16)
        require(mixed or not alpha)
        require(not (mode == 4 and (depth > 8 or alpha)))
        require(payload != 0 or (mode <= 3 and depth == 8))
        require(payload in (0, 7) or mode not in (2, 3))
        require(not (mode == 5 and alpha) or payload in (4, 5, 6, 7))
        allowed = (1, 2, 3) if payload == 0 and alpha else (0, 1) if payload == 1 and mode == 4 else (0,)
        require(variant in allowed)
        kinds.append((mode, alpha, depth, form, payload, variant))
    require(not mixed or any(payload or alpha for _, alpha, _, _, payload, _ in kinds))
    return kinds


def stack_of_chunk(f):
    tile_batches, last = [], None
    for _ in range(f.varint(1, 2**35)):
        repeat, one = f.varint(1, 2**22), (f.varint(1, 64), f.varint(0, 65_535))
        require(one != last and len(tile_batches) + repeat <= 2**22)
        tile_batches, last = tile_batches + repeat * [one], one
    trellis = 0
    if any(groups for _, groups in tile_batches):
        trellis = f.u(1)
        require(8 <= trellis <= 16)
    return tile_batches, trellis, (4 * f.varint(0, 2**35 - 1), f.u(4))


def name_of_image(f, before):
    name = b""
    while byte := f.u(1):
        name += bytes([byte])
        require(len(name) <= 4096 and byte >= 0x20 and byte not in (0x7F, 0x5C))
    if before is not None and not name:
        return following_name(before)
    try:
        parts = name.decode("utf-8").split("/")
    except UnicodeDecodeError:
        raise Refused from None
    require(not {"", ".", ".."} & set(parts))
    return "/".join(parts)


def following_name(name):
    end = len(name)
    if "." in name[name.rfind("/") + 1 :]:
        end = name.rfind(".")
    while end and name[end - 1] not in "0123456789":
        end -= 1
    require(end > 0)
    begin = end
    while begin and name[begin - 1] in "0123456789":
        begin -= 1
    counted = name[:begin] + str(int(name[begin:end]) + 1).rjust(end - begin, "0") + name[end:]
    require(len(counted.encode()) <= 4096)
    return counted
