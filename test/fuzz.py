"""Damage for files of any kind: what disks, networks, editors and people do to them.

TSM_FUZZ=2000 (./test/run.sh --full) runs the fuzz tests in full size, ./test/run.sh --all a 25th of it.
"""

import os
import re

FUZZ = int(os.environ.get("TSM_FUZZ", 8))  # damaged files of each kind


def damaged(data, chance):
    """`data` with one random change, always another bytes object than the one given; `chance` is a random.Random."""
    while True:
        result = chance.choice(WAYS)(bytearray(data), chance)
        if bytes(result) != bytes(data):
            return bytes(result)


def cut_short(data, chance):
    return data[: chance.randrange(len(data) + 1)]


def flip_bits(data, chance):
    for _ in range(chance.choice((1, 1, 3, 30))):
        if data:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return data


def zero_a_block(data, chance):
    start = chance.randrange(len(data) + 1)
    size = min(chance.choice((1, 16, 512, 4096)), len(data) - start)
    data[start : start + size] = bytes(size)
    return data


def drop_a_block(data, chance):
    start = chance.randrange(len(data) + 1)
    del data[start : start + chance.choice((1, 4, 100, 1000))]
    return data


def repeat_a_block(data, chance):
    start = chance.randrange(len(data) + 1)
    block = data[start : start + chance.choice((1, 10, 1000))]
    return data[:start] + block + data[start:]


def insert_noise(data, chance):
    start = chance.randrange(len(data) + 1)
    noise = bytes(chance.randrange(256) for _ in range(chance.choice((1, 8, 200))))
    return data[:start] + noise + data[start:]


def change_a_number(data, chance):
    """Another number, at times an absurd one, where the file is text and has one; else four bytes as a number."""
    value = chance.choice((b"-1", b"0", b"174", b"4294967296", b"1e999", b"NaN", b"9" * 400, b"0x10", b""))
    numbers = list(re.finditer(rb"\d+", bytes(data)))
    if numbers and b"\0" not in data[:1000]:
        number = chance.choice(numbers)
        data[number.start() : number.end()] = value
    elif len(data) >= 4:
        start = chance.randrange(len(data) - 3)
        data[start : start + 4] = chance.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4)))
    return data


def swap_lines(data, chance):
    lines = bytes(data).split(b"\n")
    chance.shuffle(lines)
    return b"\n".join(lines)


def windows_lines(data, chance):
    return bytes(data).replace(b"\n", b"\r\n")


WAYS = (cut_short, flip_bits, flip_bits, zero_a_block, drop_a_block, repeat_a_block, insert_noise, change_a_number,
        change_a_number, swap_lines, windows_lines)
