"""The namespaces that a cell of the benchmark runs in.

    pod client 10.77.1.2 --veth-- [node a] --veth 10.77.0.1/30, 10.77.0.2/30-- [node b] --veth-- pod server 10.77.2.2
    pod local  10.77.1.3 --veth-- [node a]                                                (the same-node server)

Each pod has a /32 on eth0 and a default route by 169.254.1.1, which the node's end of its veth carries: the usual
layout of a routed CNI, in which traffic between pods always crosses the node's namespace. Server pods also own
COLD_ADDRESSES more addresses, so that "first connection to a new destination" can be sampled many times without a
restart of the proxies. No device is made outside these namespaces.
"""
import atexit
import os
import signal
import subprocess
import time

PREFIX = "sbench-"
COLD_ADDRESSES = 40
NODES = {
    "a": {"device": "ab", "ip": "10.77.0.1", "peer": "10.77.0.2", "remote": "10.77.2.0/24"},
    "b": {"device": "ba", "ip": "10.77.0.2", "peer": "10.77.0.1", "remote": "10.77.1.0/24"},
}
PODS = {
    "client": {"node": "a", "ip": "10.77.1.2", "cold": []},
    "local": {"node": "a", "ip": "10.77.1.3", "cold": [f"10.77.1.{128 + i}" for i in range(COLD_ADDRESSES)]},
    "server": {"node": "b", "ip": "10.77.2.2", "cold": [f"10.77.2.{128 + i}" for i in range(COLD_ADDRESSES)]},
}
# Hosts differ in their default; fixed so that machines compare.
CONGESTION_CONTROL = os.environ.get("BENCH_CC", "cubic")
IPERF_PORT, ECHO_PORT, ECHO_PORTS, HTTP_PORT = 5201, 7000, 16, 8080

HERE = os.path.dirname(os.path.abspath(__file__))
MBLOAD = os.environ.get("BENCH_MBLOAD", "mbload")
NGINX = os.environ.get("BENCH_NGINX", "nginx")


def run(argv, check=True, text=None, timeout=60):
    """Runs to the end; a failure names the command and holds what it printed."""
    done = subprocess.run(argv, input=text, text=True, capture_output=True, timeout=timeout)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def pod_netns(pod):
    return PREFIX + pod


def node_netns(node):
    return f"{PREFIX}node-{node}"


def netns_path(netns):
    return "/run/netns/" + netns


def inside(netns, argv):
    """argv so that it runs in the namespace. nsenter execs, so the pid is the program's own; and unlike
    `ip netns exec` it does not mount another /sys, under which an agent would look for cgroups in vain."""
    return ["nsenter", "--net=" + netns_path(netns), "--"] + argv


def allow_congestion_control():
    """A namespace may only pick what the host lists as allowed: list ours for our lifetime."""
    path = "/proc/sys/net/ipv4/tcp_allowed_congestion_control"
    with open(path) as file:
        before = file.read().strip()
    if CONGESTION_CONTROL in before.split():
        return

    def write(text):
        with open(path, "w") as file:
            file.write(text)

    write(f"{before} {CONGESTION_CONTROL}")
    atexit.register(write, before)


class Processes:
    """Processes that we started; stop() ends exactly those, by pid."""

    def __init__(self, log_directory):
        self.log_directory = log_directory
        self.running = []
        os.makedirs(log_directory, exist_ok=True)

    def log_path(self, name):
        return os.path.join(self.log_directory, name + ".log")

    def start(self, name, argv, env=None, cwd=None):
        with open(self.log_path(name), "w") as log:
            process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env, cwd=cwd)
        self.running.append(process)
        return process

    def stop(self, patience=3):
        for process in reversed(self.running):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        end = time.monotonic() + patience
        for process in self.running:
            try:
                process.wait(max(0.05, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.running = []


class Topology:
    def __init__(self, directory):
        self.directory = directory
        self.processes = Processes(os.path.join(directory, "logs"))
        allow_congestion_control()

    def up(self):
        self.down()
        names = [node_netns(node) for node in NODES] + [pod_netns(pod) for pod in PODS]
        batch = ["netns add " + name for name in names]
        batch.append(f"link add ab netns {node_netns('a')} type veth peer name ba netns {node_netns('b')}")
        self.ip(batch)
        for node in NODES:
            self.up_node(node)
        for pod in PODS:
            self.up_pod(pod)

    def up_node(self, node):
        about, netns = NODES[node], node_netns(node)
        batch = ["link set lo up", f"link set {about['device']} up", f"addr add {about['ip']}/30 dev {about['device']}",
                 f"route add {about['remote']} via {about['peer']}"]
        for pod in (pod for pod in PODS if PODS[pod]["node"] == node):
            host = "v-" + pod
            batch += [f"link add {host} type veth peer name eth0 netns {pod_netns(pod)}", f"link set {host} up",
                      f"addr add 169.254.1.1/32 dev {host}", f"route add {PODS[pod]['ip']}/32 dev {host} scope link"]
            if PODS[pod]["cold"]:
                batch.append(f"route add {PODS[pod]['cold'][0]}/26 dev {host} scope link")
        self.ip(batch, netns)
        self.sysctl(netns, {"net.ipv4.ip_forward": 1})

    def up_pod(self, pod):
        address, netns = PODS[pod]["ip"], pod_netns(pod)
        batch = ["link set lo up", "link set eth0 up"]
        batch += [f"addr add {ip}/32 dev eth0" for ip in [address] + PODS[pod]["cold"]]
        batch += [f"route add 169.254.1.1/32 dev eth0 scope link src {address}",
                  f"route add default via 169.254.1.1 dev eth0 src {address}"]
        self.ip(batch, netns)
        # The tests of short connections would run out of ports.
        self.sysctl(netns, {"net.ipv4.ip_local_port_range": "10000 65000", "net.ipv4.tcp_tw_reuse": 1})

    def start_servers(self):
        for pod in ("server", "local"):
            netns, directory = pod_netns(pod), os.path.join(self.directory, "nginx-" + pod)
            os.makedirs(directory + "/logs", exist_ok=True)
            self.processes.start("iperf3-" + pod, inside(netns, ["iperf3", "-s", "-p", str(IPERF_PORT)]))
            self.processes.start("echo-" + pod, inside(netns, [MBLOAD, "serve", "-p", str(ECHO_PORT), "-P", str(ECHO_PORTS)]))
            settings = f"daemon off; pid {directory}/nginx.pid; error_log {directory}/logs/error.log warn;"
            self.processes.start("nginx-" + pod, inside(netns, [
                NGINX, "-p", directory, "-c", os.path.join(HERE, "nginx.conf"), "-e", directory + "/logs/error.log", "-g", settings]))
        for pod in ("server", "local"):
            for port in (IPERF_PORT, ECHO_PORT, HTTP_PORT):
                self.wait_until_listening(pod_netns(pod), port)

    def down(self):
        self.processes.stop()
        present = {line.split()[0] for line in run(["ip", "netns", "list"]).stdout.splitlines() if line.strip()}
        for name in [pod_netns(pod) for pod in PODS] + [node_netns(node) for node in NODES]:
            if name in present:
                run(["ip", "netns", "del", name])

    @staticmethod
    def ip(batch, netns=None):
        run(["ip"] + (["-n", netns] if netns else []) + ["-batch", "-"], text="\n".join(batch) + "\n")

    @staticmethod
    def sysctl(netns, values):
        values = {**values, "net.ipv4.conf.all.rp_filter": 0, "net.ipv4.tcp_congestion_control": CONGESTION_CONTROL}
        run(inside(netns, ["sysctl", "-qw"] + [f"{name}={value}" for name, value in values.items()]))

    @staticmethod
    def wait_until_listening(netns, port, patience=5):
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if f":{port} " in run(inside(netns, ["ss", "-Hltn"])).stdout:
                return
            time.sleep(0.03)
        raise RuntimeError(f"nothing listens on {port} in {netns}")
