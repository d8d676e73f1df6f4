"""Counts the frames on a device for some seconds and those that hold a marker: `sniff.py DEVICE SECONDS MARKER`.

Run inside the node's namespace. Prints `ready` once it listens, then one line of JSON."""
import json
import socket
import sys
import time

ETH_P_ALL = 3


def main():
    device, seconds, marker = sys.argv[1], float(sys.argv[2]), sys.argv[3].encode()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(ETH_P_ALL)) as wire:
        wire.bind((device, 0))
        wire.settimeout(0.1)
        print("ready", flush=True)
        end, frames, hits = time.monotonic() + seconds, 0, 0
        while time.monotonic() < end:
            try:
                frame = wire.recv(70000)
            except TimeoutError:
                continue
            frames += 1
            hits += marker in frame
    print(json.dumps({"frames": frames, "marker_hits": hits}))


if __name__ == "__main__":
    main()
