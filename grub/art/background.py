#!/usr/bin/env python3
"""Draws the boot menu's pictures: a house at night, one lit window for each guest.

Our own drawing, under the project's licence. Python's standard library only; equal on every machine (integers, no fonts, no
randomness but a fixed sequence). Usage: art/background.py themes/gasthaus
"""
import struct
import sys
import zlib

W, H = 1024, 768
TOP, BOTTOM = (9, 13, 36), (52, 48, 92)  # sky
px = bytearray(W * H * 3)


def put(x, y, c):
    if 0 <= x < W and 0 <= y < H:
        i = (y * W + x) * 3
        px[i : i + 3] = bytes(c)


def rect(x0, y0, x1, y1, c):
    for y in range(max(y0, 0), min(y1, H)):
        i = (y * W + max(x0, 0)) * 3
        px[i : i + 3 * (min(x1, W) - max(x0, 0))] = bytes(c) * (min(x1, W) - max(x0, 0))


def polygon(points, c):
    """Fills a polygon by scan lines (even-odd, half-open)."""
    for y in range(min(p[1] for p in points), max(p[1] for p in points)):
        xs = []
        for (xa, ya), (xb, yb) in zip(points, points[1:] + points[:1]):
            if (ya <= y) != (yb <= y):
                xs.append(xa + (y - ya) * (xb - xa) // (yb - ya))
        xs.sort()
        for a, b in zip(xs[::2], xs[1::2]):
            rect(a, y, b, y + 1, c)


def disc(cx, cy, r, c):
    for y in range(cy - r, cy + r + 1):
        half = int(max(0, r * r - (y - cy) ** 2) ** 0.5)
        rect(cx - half, y, cx + half + 1, y + 1, c)


# Sky in bands of four rows: a smooth gradient that still packs well.
for y in range(0, H, 4):
    t = y * 256 // H
    rect(0, y, W, y + 4, [a + (b - a) * t // 256 for a, b in zip(TOP, BOTTOM)])

seed = 2006
for _ in range(150):  # stars
    seed = (seed * 1103515245 + 12345) & 0x7FFFFFFF
    x, y = (seed >> 8) % W, (seed >> 3) % 430
    b = 110 + (seed >> 16) % 120
    put(x, y, (b, b, min(255, b + 20)))
    if b > 205:
        put(x + 1, y, (b, b, b)), put(x, y + 1, (b, b, b))

disc(905, 108, 46, (243, 233, 200))  # moon
disc(926, 96, 40, [a + (b - a) * (100 * 256 // H) // 256 for a, b in zip(TOP, BOTTOM)])

# Hills.
for x in range(W):
    far = 560 + (x - 300) * (x - 300) // 9000 - 40
    near = 655 - (x - 820) * (x - 820) // 22000
    rect(x, max(far, 480), x + 1, H, (30, 32, 66))
    rect(x, max(near, 560) + 10, x + 1, H, (20, 24, 48))

# The house: wall, timber frame, roof, chimney.
WALL, BEAM, ROOF, LIGHT, GLOW = (74, 62, 78), (43, 32, 38), (66, 30, 38), (255, 205, 110), (255, 232, 170)
rect(705, 420, 955, 672, WALL)
rect(895, 300, 927, 370, (54, 38, 44))  # chimney
polygon([(680, 424), (830, 288), (980, 424)], ROOF)
polygon([(700, 424), (830, 306), (960, 424)], WALL)
polygon([(672, 432), (830, 288), (830, 300), (688, 432)], ROOF)
polygon([(988, 432), (830, 288), (830, 300), (972, 432)], ROOF)
for y in (424, 504, 588, 664):
    rect(700, y, 960, y + 9, BEAM)
for x in (700, 784, 867, 951):
    rect(x, 424, x + 9, 672, BEAM)
for x0, x1 in ((709, 784), (951, 876)):  # braces
    step = 1 if x1 > x0 else -1
    polygon([(x0, 588), (x0 + 12 * step, 588), (x1, 664), (x1 - 12 * step, 664)], BEAM)


def window(x, y, w, h, lit):
    rect(x - 4, y - 4, x + w + 4, y + h + 4, BEAM)
    rect(x, y, x + w, y + h, LIGHT if lit else (38, 40, 66))
    if lit:
        rect(x + 3, y + 3, x + w // 2 - 2, y + h // 2 - 2, GLOW)
    rect(x + w // 2 - 1, y, x + w // 2 + 2, y + h, BEAM)
    rect(x, y + h // 2 - 1, x + w, y + h // 2 + 2, BEAM)


window(814, 348, 34, 40, True)
for col, x in enumerate((728, 811, 894)):
    window(x, 444, 40, 46, col != 1)
    if col != 1:
        window(x, 524, 40, 48, col == 0)
rect(806, 520, 856, 588, (38, 28, 34))  # sign board
rect(811, 525, 851, 583, (134, 92, 44))
disc(831, 548, 13, (255, 217, 138))
rect(827, 560, 835, 576, (255, 217, 138))
rect(802, 597, 859, 672, (38, 28, 34))  # door, open a little
rect(808, 603, 838, 672, (94, 58, 40))
polygon([(838, 603), (853, 610), (853, 672), (838, 672)], GLOW)
polygon([(838, 672), (853, 672), (800, 740), (700, 740)], (62, 54, 60))
for i, (x, y, r) in enumerate(((911, 280, 9), (920, 258, 12), (934, 232, 15))):  # smoke
    disc(x, y, r, (44 + 5 * i, 44 + 5 * i, 74 + 5 * i))

# The name, in strokes: each letter a list of boxes on a grid of 5 columns and 7 rows.
GLYPHS = {
    "G": "01110 10001 10000 10111 10001 10001 01110", "a": "00000 00000 01110 00001 01111 10001 01111",
    "s": "00000 00000 01111 10000 01110 00001 11110", "t": "01000 01000 11110 01000 01000 01001 00110",
    "h": "10000 10000 10110 11001 10001 10001 10001", "u": "00000 00000 10001 10001 10001 10011 01101",
}
CELL, PEN = 10, 82
for letter in "Gasthaus":
    for row, bits in enumerate(GLYPHS[letter].split()):
        for col, bit in enumerate(bits):
            if bit == "1":
                x, y = PEN + col * CELL, 132 + row * CELL
                rect(x + 2, y + 2, x + CELL + 2, y + CELL + 2, (6, 9, 26))
    for row, bits in enumerate(GLYPHS[letter].split()):
        for col, bit in enumerate(bits):
            if bit == "1":
                x, y = PEN + col * CELL, 132 + row * CELL
                rect(x, y, x + CELL, y + CELL, (255, 217, 138))
    PEN += 6 * CELL


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(path, width, height, rgb):
    rows = b"".join(b"\0" + bytes(rgb[y * width * 3 : (y + 1) * width * 3]) for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8-bit RGB, not interlaced: what GRUB's reader knows
    with open(path, "wb") as out:
        out.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b""))


png(f"{sys.argv[1]}/background.png", W, H, px)
# The bar behind the chosen entry: a warm piece in the middle, a lighter one at its left.
png(f"{sys.argv[1]}/select_c.png", 4, 4, bytes((84, 58, 44)) * 16)
png(f"{sys.argv[1]}/select_w.png", 4, 4, bytes((255, 205, 110)) * 16)
