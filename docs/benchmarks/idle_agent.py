#!/usr/bin/env python3
"""What an idle agent costs that looks at cards of twelve vendors, beside one that has cores alone.

usage: idle_agent.py --aquifer target/release/aquifer [--seconds 100]

Compiles the stand-ins for the vendors' libraries that the tests use (needs cc), starts a scheduler and both agents, waits until
what is done at the start is over, and reads memory and processor time of the agents and of their processes from /proc. Root adds a bus
of 178 places with 28 accelerators, in a mount namespace of the agents (needs unshare).
"""
import argparse, os, pathlib, subprocess, tempfile, time

STUBS = pathlib.Path(__file__).resolve().parents[2] / "agent/tests/stubs"
# Vendor, its number on the bus, library, source, defines.
VENDORS = [
    ("nvidia", "0x10de", "libnvidia-ml.so.1", "shaped.c", ["PREFIX=nvml", 'NAME="NVIDIA H100"', 'UUID="GPU-0"']),
    ("iluvatar", "0x1e3e", "libixml.so", "shaped.c", ["PREFIX=nvml", 'NAME="MR-V50"', 'UUID="GPU-ix"', "ILUVATAR"]),
    ("t-head", "0x1ded", "libhgml.so", "shaped.c", ["PREFIX=hgml", 'NAME="PPU"', 'UUID="PPU"']),
    ("enflame", "0x1e36", "libefml.so", "shaped.c", ["PREFIX=efml", 'NAME="S90"', 'UUID="T9R"']),
    ("biren", "0x1ee0", "libbiren-ml.so.1", "biren.c", []),
    ("kunlunxin", "0x1d22", "libxpuml.so", "kunlunxin.c", []),
    ("gaudi", "0x1da3", "libhlml.so", "gaudi.c", []),
    ("ascend", "0x19e5", "libdcmi.so", "ascend.c", []),
    ("cambricon", "0xcabc", "libcndev.so", "cambricon.c", []),
    ("hygon", "0x1d94", "librocm_smi64.so", "hygon.c", []),
    ("moore-threads", "0x1ed5", "libmtml.so", "moore_threads.c", []),
    ("metax", "0x9999", "libmxsml.so", "metax.c", []),
]
QUIET = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def compile_stubs(directory):
    for _, _, library, source, defines in VENDORS:
        flags = [f"-D{define}" for define in defines] + [f'-DDIR="{directory}"']
        subprocess.run(["cc", "-shared", "-fPIC", "-o", directory / library, *flags, STUBS / source], check=True)


def make_bus(directory):
    """28 accelerators of 14 vendors and 150 other places."""
    numbers = [number for _, number, *_ in VENDORS] + ["0x1002", "0x8086"]
    for place in range(178):
        is_card = place < 28
        at = directory / f"0000:{place + 16:02x}:00.0"
        at.mkdir(parents=True)
        (at / "vendor").write_text(numbers[place // 2] if is_card else "0x8086")
        (at / "class").write_text("0x120000" if is_card else "0x060400")


def family(process):
    """The process and all that it has started, which have its libraries."""
    all, parents = [], {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            parents.setdefault(int(stat.read_text().rsplit(") ", 1)[1].split()[1]), []).append(int(stat.parent.name))
        except OSError:
            pass  # It has just ended.
    waiting = [process]
    while waiting:
        all.append(waiting.pop())
        waiting += parents.get(all[-1], [])
    return all


def cost(process):
    """KiB of memory, what is shared with others in parts, and processor ticks so far, of an agent with its processes."""
    memory, ticks = 0, 0
    for one in family(process.pid):
        rollup = pathlib.Path(f"/proc/{one}/smaps_rollup").read_text()
        memory += int(rollup.split("\nPss:")[1].split()[0])
        fields = pathlib.Path(f"/proc/{one}/stat").read_text().rsplit(") ", 1)[1].split()
        # With those of processes of it that have ended.
        ticks += sum(int(field) for field in fields[11:15])
    return memory, ticks


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aquifer", required=True)
    parser.add_argument("--seconds", type=int, default=100)
    arguments = parser.parse_args()
    binary = os.path.abspath(arguments.aquifer)
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        compile_stubs(directory)
        env = dict(os.environ, AQUIFER_LOG_LEVEL="warn")
        server = subprocess.Popen(
            [binary, "server", "--listen", "127.0.0.1:0", "--data-dir", directory / "server"],
            stdout=subprocess.PIPE, text=True, env=env)
        env["AQUIFER_SERVER"] = "http://" + server.stdout.readline().split()[-1]
        within = []
        if os.geteuid() == 0:
            make_bus(directory / "bus")
            mount = f'mount --bind {directory / "bus"} /sys/bus/pci/devices && exec "$@"'
            within = ["unshare", "--mount", "sh", "-c", mount, "sh"]
        agents = {}
        for name, devices in [("cores alone", "cpu"), ("twelve vendors", ",".join(vendor for vendor, *_ in VENDORS))]:
            agent = [binary, "agent", "--node", name.replace(" ", "-"), "--devices", devices, "--run-as", "agent",
                     "--measure", "never", "--library-path", directory, "--state-dir", directory / devices[:3]]
            agents[name] = subprocess.Popen([*within, *agent], env=env, **QUIET)
        time.sleep(15)
        print(subprocess.run([binary, "nodes"], env=env, capture_output=True, text=True).stdout)
        begun, before = time.monotonic(), {name: cost(agent) for name, agent in agents.items()}
        time.sleep(arguments.seconds)
        took = time.monotonic() - begun
        base = None
        for name, agent in agents.items():
            resident, ticks = cost(agent)
            share = (ticks - before[name][1]) / os.sysconf("SC_CLK_TCK") / took
            base = base or (resident, share)
            more = f"{(resident - base[0]) / 1024:+.1f} MiB, {(share - base[1]) * 100:+.2f} %"
            print(f"{name:16} {resident / 1024:6.1f} MiB, {share * 100:5.2f} % of one core   {more}")
        for process in [*agents.values(), server]:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
