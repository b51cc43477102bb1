"""TensorBoard's event files, read back."""

import struct

from tensorboardX.proto import event_pb2


def read_events(folder):
    """All events of a folder's files, in the order of the files' times."""
    events = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            record = content[place + 12 : place + 12 + length]
            events.append(event_pb2.Event.FromString(record))
            place += 12 + length + 4  # lengths and records have checksums
    return events


def values_of(folder, tag):
    """(step, value) of a tag."""
    return [
        (event.step, value)
        for event in read_events(folder)
        for value in event.summary.value
        if value.tag == tag
    ]
