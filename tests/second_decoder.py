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
        require(kind in (1, 2) and encoding in (0, 1))
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
        images, rows, shared, tile_batches, trellis, count, crc, learns = header_of_chunk(body, first=not chunks)
        items = tuple(f.item(*row) for row in rows)
        chunks.append((images, items, tile_batches, trellis, f.checked(4 * count, crc), shared, learns))
    require(f.at == len(f.data))
    names = [image[5] for chunk in chunks for image in chunk[0]]
    require(len(set(names)) == len(names) and ("" not in names or len(names) == 1))
    require(len(names) <= 2**20 and sum(len(chunk[2]) for chunk in chunks) <= 2**22)
    require(sum(len(data) for chunk in chunks for _, data in chunk[1]) <= 2**28)
    require(sum(image[0] * image[1] for chunk in chunks for image in chunk[0]) <= max(2**27, 65_536 * len(file)))
    return fingerprint, tuple(chunks)


def header_of_chunk(body, first):
    f = Fields(body)
    flags = f.u(1)
    require(flags < 64 and bool(flags & 8) == first and (flags & 1 or not flags & 16))
    if flags & 4:
        length = f.varint(1, 2**24)
        f = Fields(inflated(body[f.at :], length))
    images = range(f.varint(1, 2**20))
    sides = [[f.varint(1, 2**24) for _ in images] for _ in "wh"]
    areas = [width * height for width, height in zip(*sides, strict=True)]
    require(sum(areas) <= 2**27)
    modes = [f.u(1) for _ in images]
    require(set(modes) <= {0, 1, 2, 3})
    checksums = [f.u(4 if area >= 4096 else 0 if flags & 16 else 2) for area in areas]
    shared = f.u(4) if flags & 16 and min(areas) < 4096 else None
    names = [""] * len(images)
    for image in images if flags & 1 else ():
        names[image] = name_of_image(f, names[image - 1] if flags & 16 and image else None)
    rows, references = [], [()] * len(images)
    if flags & 2:
        rows = [f.item_row() for _ in range(f.varint(1, 2 * len(images)))]
        references = [tuple(f.varint(0, 2**35) for _ in range(f.varint(0, 2))) for _ in images]
    check_kinds(references, rows)
    tile_batches, last = [], None
    for _ in range(f.varint(1, 2**35)):
        repeat, one = f.varint(1, 2**22), (f.varint(1, 64), f.varint(0, 65_535))
        require(one != last and len(tile_batches) + repeat <= 2**22)
        tile_batches, last = tile_batches + repeat * [one], one
    trellis = 0
    if any(groups for _, groups in tile_batches):
        trellis = f.u(1)
        require(8 <= trellis <= 16)
    count, crc = f.varint(0, 2**35 - 1), f.u(4)
    require(f.at == len(f.data))
    images = tuple(zip(*sides, modes, checksums, references, names, strict=True))
    return images, rows, shared, tuple(tile_batches), trellis, count, crc, flags >= 32


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
