"""The CNI's side of ztunnel's ZDS: hands the pods' namespaces to one in-pod proxy over a Unix socket.

SOCK_SEQPACKET, protobuf by hand; the messages are those of the public zds.proto (istio/ztunnel proto/zds.proto)."""
import array
import os
import socket
import threading

# WorkloadResponse { ack {} }
ACK = b"\x0a\x00"


def field(number, content):
    """A length-delimited protobuf field."""
    content = content.encode() if isinstance(content, str) else content
    length, prefix = len(content), b""
    while True:
        low, length = length & 0x7F, length >> 7
        prefix += bytes([low | (0x80 if length else 0)])
        if not length:
            return bytes([number << 3 | 2]) + prefix + content


def add_workload(uid, name, namespace, service_account):
    return field(1, field(1, uid) + field(2, field(1, name) + field(2, namespace) + field(3, service_account)))


SNAPSHOT_SENT = field(3, b"")


class PodFeed(threading.Thread):
    """workloads: (uid, name, namespace, service account, path of the network namespace)."""

    def __init__(self, path, workloads):
        super().__init__(daemon=True)
        self.path, self.workloads = path, workloads
        self.fed, self.error = threading.Event(), None
        self.proxy = None
        if os.path.exists(path):
            os.unlink(path)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(path)
        self.listener.listen(4)

    def run(self):
        try:
            self.proxy, _ = self.listener.accept()
            self.proxy.recv(1024)  # its hello
            for uid, name, namespace, service_account, netns in self.workloads:
                self.send(add_workload(uid, name, namespace, service_account), netns)
            self.proxy.send(SNAPSHOT_SENT)
            self.proxy.recv(4096)
            self.fed.set()
            self.proxy.recv(4096)  # returns when the proxy goes away
        except (OSError, RuntimeError) as error:
            self.error = error
            self.fed.set()

    def send(self, message, netns):
        descriptor = os.open(netns, os.O_RDONLY)
        try:
            self.proxy.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))])
        finally:
            os.close(descriptor)
        answer = self.proxy.recv(4096)
        if answer != ACK:
            raise RuntimeError(f"the proxy refused the pod: {answer!r}")

    def wait_until_fed(self, patience):
        if not self.fed.wait(patience) or self.error:
            raise RuntimeError(f"the proxy did not take its pods over {self.path}: {self.error or 'no answer'}")

    def stop(self):
        for end in (self.proxy, self.listener):
            if end:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # its peer was faster
                end.close()
        if os.path.exists(self.path):
            os.unlink(self.path)
