#!/usr/bin/env python3
# Makes the image files in images/ and images.bin, what Pillow decodes them to.
# Needs Debian's python3-pil, python3-numpy, python3-skimage. SPDX-License-Identifier: MIT
#
# images.bin: for each file, name (32 bytes, 0-padded), width, height, most (3 x u32, little endian), width * height * 3
# bytes RGB. `most` is 0 where pixels must be equal, else a bound in 1/1000 on the mean absolute difference. That is for
# JPEG, where decoders may round differently after the inverse DCT, the upsampling and the colours: by 1 in some pixels.
# Half a level on average leaves room for that and for stb_image's last column in 4:2:2 (0.33 here, the most of all
# files; the others are below 0.2), and none for a wrong table or a shift.
import io
import os
import struct
import warnings
import zlib

import numpy as np
import skimage.data
from PIL import Image

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "images")
W, H = 29, 21  # no multiple of 8 or 16, and odd
RECORDS = []

JPEG_MOST = 500


def photo():
    """A part of skimage's coffee (CC0), small."""
    return np.asarray(Image.fromarray(skimage.data.coffee()[40:340, 120:534]).resize((W, H), Image.BICUBIC))


def drawn(channels):
    y, x, c = np.mgrid[0:H, 0:W, 0:channels]
    return ((37 * x + 91 * y + 53 * c + 11 * x * y) % 256).astype(np.uint8)


def save(name, data, pixels=None, most=0):
    with open(os.path.join(OUT, name), "wb") as f:
        f.write(data)
    if pixels is None:
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    h, w, _ = pixels.shape
    RECORDS.append(struct.pack("<32s3I", name.encode(), w, h, most) + pixels.astype(np.uint8).tobytes())


def pillow(name, image, most=0, **options):
    buffer = io.BytesIO()
    image.save(buffer, **options)
    save(name, buffer.getvalue(), most=most)


# ---- PNG, written here: Pillow writes few of its kinds


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def paeth(a, b, c):
    p = a + b - c
    pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
    return a if pa <= pb and pa <= pc else b if pb <= pc else c


def filtered(rows, step):
    """Each row with the next of PNG's five filters."""
    out, above = b"", None
    for y, row in enumerate(rows):
        kind, above = y % 5, above or bytes(len(row))
        line = bytearray()
        for i, value in enumerate(row):
            a = row[i - step] if i >= step else 0
            c = above[i - step] if i >= step else 0
            b = above[i]
            line.append((value - (0, a, b, (a + b) // 2, paeth(a, b, c))[kind]) & 255)
        out += bytes([kind]) + bytes(line)
        above = row
    return out


def packed(samples, depth):
    """[h][w][channels] integers to rows of bytes."""
    rows = []
    for line in samples.reshape(samples.shape[0], -1):
        bits = "".join(format(int(v), "0%db" % depth) for v in line)
        bits += "0" * (-len(bits) % 8)
        rows.append(bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)))
    return rows


ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def png(samples, depth, kind, extra=b"", interlaced=False, pieces=1):
    h, w, channels = samples.shape
    step = max(1, channels * depth // 8)
    parts = [samples[y0::dy, x0::dx] for x0, y0, dx, dy in ADAM7] if interlaced else [samples]
    raw = b"".join(filtered(packed(p, depth), step) for p in parts if p.size)
    data = zlib.compress(raw, 9)
    size = -(-len(data) // pieces)
    idat = b"".join(chunk(b"IDAT", data[i : i + size]) for i in range(0, len(data), size))
    header = struct.pack(">IIBBBBB", w, h, depth, kind, 0, 0, int(interlaced))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + idat + chunk(b"IEND", b"")


def grey_rgb(grey):
    return np.repeat(grey.reshape(*grey.shape[:2], 1), 3, 2)


def make_png():
    d = drawn(4)
    for depth in (1, 2, 4):
        v = d[:, :, :1] >> (8 - depth)
        save("grey%d.png" % depth, png(v, depth, 0))
        colours = bytes((40 * i + 17 * c) % 256 for i in range(1 << depth) for c in range(3))
        save("palette%d.png" % depth, png(v, depth, 3, chunk(b"PLTE", colours)))
    save("grey8.png", png(d[:, :, :1], 8, 0))
    save("grey8-key.png", png(d[:, :, :1], 8, 0, chunk(b"tRNS", struct.pack(">H", int(d[3, 3, 0])))))
    save("grey8-alpha.png", png(d[:, :, :2], 8, 4))
    # Pillow clips 16 bit grey to 255 instead of scaling it; the upper byte is meant.
    save("grey16.png", png(d[:, :, :1].astype(int) * 257 ^ 255, 16, 0), grey_rgb(d[:, :, 0]))
    save("grey16-alpha.png", png(d[:, :, :2].astype(int) * 257, 16, 4))
    save("rgb8.png", png(d[:, :, :3], 8, 2, pieces=3))
    save("rgb8-key.png", png(d[:, :, :3], 8, 2, chunk(b"tRNS", struct.pack(">3H", *map(int, d[2, 2, :3])))))
    save("rgb8-adam7.png", png(d[:, :, :3], 8, 2, interlaced=True))
    save("grey1-adam7.png", png(d[:, :, :1] >> 7, 1, 0, interlaced=True))
    save("rgb16.png", png(d[:, :, :3].astype(int) << 8 | 0x80, 16, 2))
    save("rgba8.png", png(d, 8, 6))
    save("rgba16-adam7.png", png(d.astype(int) << 8 | 0xC3, 16, 6, interlaced=True))
    colours = bytes((40 * i + 17 * c) % 256 for i in range(256) for c in range(3))
    palette = chunk(b"PLTE", colours)
    save("palette8.png", png(d[:, :, :1], 8, 3, palette))
    save("palette8-alpha.png", png(d[:, :, :1], 8, 3, palette + chunk(b"tRNS", bytes(range(0, 256, 2)))))
    save("palette4-adam7.png", png(d[:, :, :1] >> 4, 4, 3, chunk(b"PLTE", colours[:48]), interlaced=True))
    save("one-pixel.png", png(d[:1, :1, :3], 8, 2))
    pillow("pillow.png", Image.fromarray(photo()), format="PNG")


def make_jpeg():
    p = Image.fromarray(photo())
    for name, subsampling in (("444", 0), ("422", 1), ("420", 2)):
        pillow("baseline-%s.jpg" % name, p, JPEG_MOST, format="JPEG", quality=85, subsampling=subsampling)
        pillow("progressive-%s.jpg" % name, p, JPEG_MOST, format="JPEG", quality=85, subsampling=subsampling,
               progressive=True, optimize=True)
    pillow("grey.jpg", p.convert("L"), JPEG_MOST, format="JPEG", quality=85)
    pillow("grey-progressive.jpg", p.convert("L"), JPEG_MOST, format="JPEG", quality=85, progressive=True)
    pillow("one-pixel.jpg", p.crop((3, 3, 4, 4)), JPEG_MOST, format="JPEG", quality=85)
    pillow("wide.jpg", p.crop((0, 0, W, 1)), JPEG_MOST, format="JPEG", quality=85)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, which nobody here does
    pillow("exif-turned.jpg", p, JPEG_MOST, format="JPEG", quality=85, exif=exif)
    # With a whole JPEG in its metadata: a cut after that thumbnail's end must not look like the picture's end.
    buffer = io.BytesIO()
    p.resize((8, 8)).save(buffer, format="JPEG", quality=50)
    pillow("thumbnail.jpg", p, JPEG_MOST, format="JPEG", quality=85, exif=b"Exif\0\0" + buffer.getvalue())
    save("restart.jpg", restart_jpeg(), most=JPEG_MOST)
    pillow("cmyk.jpg", p.convert("CMYK"), JPEG_MOST, format="JPEG", quality=90)


def restart_jpeg():
    """32x16 grey, a restart marker after every 4 blocks, which Pillow cannot write. Each run of 4 blocks has one level:
    DC codes are 0 (no change) and 10 (6 bits follow), AC has only 0 (end of block)."""

    def segment(marker, data):
        return b"\xFF" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data

    def run(level):
        bits = "10" + format(level, "06b") + "0" + "00" * 3
        return bytes(int((bits + "1" * 8)[i : i + 8], 2) for i in (0, 8))

    counts = [bytes([1, 1] + [0] * 14), bytes([1] + [0] * 15)]
    tables = bytes([0x00]) + counts[0] + bytes([0, 6]) + bytes([0x10]) + counts[1] + bytes([0])
    return (b"\xFF\xD8" + segment(0xDB, bytes([0] + [8] * 64)) + segment(0xC0, struct.pack(">BHHB", 8, 16, 32, 1) +
            bytes([1, 0x11, 0])) + segment(0xC4, tables) + segment(0xDD, struct.pack(">H", 4)) +
            segment(0xDA, bytes([1, 1, 0x00, 0, 63, 0])) + run(0b110010) + b"\xFF\xD0" + run(0b001011) + b"\xFF\xD9")


# ---- BMP


def bmp(rows, w, h, depth, palette=b"", masks=b""):
    header = struct.pack("<IiiHHIIiiII", 40, w, h, 1, depth, 3 if masks else 0, 0, 2835, 2835, len(palette) // 4, 0)
    at = 14 + 40 + len(masks) + len(palette)
    body = b"".join(r + bytes(-len(r) % 4) for r in rows)
    return b"BM" + struct.pack("<IHHI", at + len(body), 0, 0, at) + header + masks + palette + body


def make_bmp():
    d = drawn(3)
    up, bgr = d[::-1], d[::-1, :, ::-1]
    palette = b"".join(bytes([i, (3 * i) % 256, (7 * i) % 256, 0]) for i in range(256))
    pillow("pillow24.bmp", Image.fromarray(photo()), format="BMP")
    save("top-down24.bmp", bmp([r.tobytes() for r in bgr[::-1]], W, -H, 24))
    old = struct.pack("<IHHIIHHHH", 26 + H * 88, 0, 0, 26, 12, W, H, 1, 24)  # OS/2's header
    save("os2-24.bmp", b"BM" + old + b"".join(r.tobytes() + b"\0" for r in bgr))
    four = np.concatenate([bgr, np.full((H, W, 1), 9, np.uint8)], 2)
    save("32.bmp", bmp([r.tobytes() for r in four], W, H, 32))
    fields = struct.pack("<3I", 0xFF0000, 0xFF00, 0xFF)
    save("fields32.bmp", bmp([r.tobytes() for r in four], W, H, 32, masks=fields))
    for depth in (1, 4, 8):
        rows = packed(up[:, :, :1] >> (8 - depth), depth)
        save("palette%d.bmp" % depth, bmp(rows, W, H, depth, palette[: 4 << depth]))
    # 5 bits become 8 by repeating the upper ones; Pillow rounds v * 255 / 31, which differs by 1 here and there.
    five = (d >> 3).astype(np.uint16)
    words = five[::-1, :, 0] << 10 | five[::-1, :, 1] << 5 | five[::-1, :, 2]
    wide = (five.astype(int) * 33 >> 2).astype(np.uint8)
    save("16.bmp", bmp([r.astype("<u2").tobytes() for r in words], W, H, 16), wide)


# ---- PNM


def make_pnm():
    d = drawn(3)
    save("plain.ppm", b"P6\n%d %d\n255\n" % (W, H) + d.tobytes())
    save("plain.pgm", b"P5 %d %d 255 " % (W, H) + d[:, :, 0].tobytes())
    comments = b"P6 # made by hand\n# two\n\n%d\t# width\n  %d\n#\n255\n" % (W, H)
    save("comments.ppm", comments + d.tobytes())
    for most in (1, 10, 100, 254):
        save("most%d.ppm" % most, b"P6\n%d %d\n%d\n" % (W, H, most) + (d % (most + 2)).astype(np.uint8).tobytes())
    save("most100.pgm", b"P5\n%d %d\n100\n" % (W, H) + (d[:, :, 0] % 101).tobytes())
    wide = d.astype(">u2") * 7
    save("most1800.ppm", b"P6\n%d %d\n1800\n" % (W, H) + wide.tobytes())
    save("most65535.ppm", b"P6\n%d %d\n65535\n" % (W, H) + (d.astype(int) * 257).astype(">u2").tobytes())
    # As with grey16.png.
    grey = (d[:, :, 0].astype(int) * 257).astype(">u2")
    save("most65535.pgm", b"P5\n%d %d\n65535\n" % (W, H) + grey.tobytes(), grey_rgb(d[:, :, 0]))


def main():
    os.makedirs(OUT, exist_ok=True)
    warnings.simplefilter("ignore")  # Pillow would rather have transparent palettes made RGBA
    make_png()
    make_jpeg()
    make_bmp()
    make_pnm()
    with open(os.path.join(HERE, "images.bin"), "wb") as f:
        f.write(b"".join(RECORDS))


if __name__ == "__main__":
    main()
