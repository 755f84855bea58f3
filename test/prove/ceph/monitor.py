"""Asks a Ceph cluster what no client library of ours can, several things in one go: each start of `ceph` takes 0.15 s.

monitor.py CONF SECONDS announce UUID...             tells of OSDs 0, 1, ... before they start
monitor.py CONF SECONDS pool NAME PGS OSDS           waits for the OSDs, makes a pool of as many copies, writes to it
monitor.py CONF SECONDS up PID...                    waits until it knows the OSDs in these processes, and no others, as up
monitor.py CONF SECONDS clean POOL PID...            waits until the OSDs in these processes hold all of the pool

Everything together is given SECONDS. There is no manager daemon, so what needs one (`ceph pg stat`) never answers.
"""

import json
import sys
import time

import rados

conf, seconds, command, *arguments = sys.argv[1:]
deadline = time.monotonic() + float(seconds)


def left():
    return max(1, int(deadline - time.monotonic()))


def until(what, holds):
    while not holds():
        if time.monotonic() > deadline:
            sys.exit(f"{what}: not within {seconds} s")
        time.sleep(0.05)


cluster = rados.Rados(conffile=conf, name="client.admin")
cluster.connect(timeout=left())


def ask(prefix, **options):
    request = json.dumps({"prefix": prefix, "format": "json", **options})
    code, answer, complaint = cluster.mon_command(request, b"", timeout=left())
    if code != 0:
        sys.exit(f"{prefix}: {code} {complaint}")
    return json.loads(answer) if answer.strip() else None


def are_up(count):
    return lambda: ask("osd stat")["num_up_osds"] == count


def are_up_as(pids):
    """An OSD's address ends in its pid. One that was killed with nobody left to tell of it still counts as up."""

    def holds():
        osds = [osd for osd in ask("osd dump")["osds"] if osd["up"]]
        return {osd["public_addrs"]["addrvec"][0]["nonce"] for osd in osds} == pids

    return holds


def is_clean(pool_id, pg, count):
    """Asked of the OSD that leads the group, since only a manager would have told the monitor."""
    pgid = f"{pool_id}.{pg:x}"
    request = json.dumps({"prefix": "query", "pgid": pgid, "format": "json"})
    code, answer, _ = cluster.pg_command(pgid, request, b"", timeout=left())
    if code != 0:
        return False
    group = json.loads(answer)
    return group["state"] == "active+clean" and len(group["acting"]) == count


if command == "announce":
    for number, uuid in enumerate(arguments):
        ask("osd new", uuid=uuid, id=number)
elif command == "pool":
    name, pgs, osds = arguments[0], int(arguments[1]), int(arguments[2])
    until("all OSDs up", are_up(osds))
    ask("osd pool create", pool=name, pg_num=pgs, pgp_num=pgs)
    ask("osd pool set", pool=name, var="size", val=str(osds))
    ask("osd pool set", pool=name, var="min_size", val="1")
    ask("osd pool application enable", pool=name, app="rbd")
    objects = cluster.open_ioctx(name)
    # Writing ends once the object's group of OSDs is there: some for each group.
    for number in range(4 * pgs):
        objects.write_full(f"probe{number}", b"x")
    for number in range(4 * pgs):
        objects.remove_object(f"probe{number}")
elif command == "up":
    until("OSDs up", are_up_as({int(pid) for pid in arguments}))
elif command == "clean":
    name, pids = arguments[0], {int(pid) for pid in arguments[1:]}
    until("OSDs up", are_up_as(pids))
    # What this client learnt when it connected may be from before.
    cluster.wait_for_latest_osdmap()
    pools = {pool["pool_name"]: pool for pool in ask("osd dump")["pools"]}
    pool_id, pgs = pools[name]["pool"], pools[name]["pg_num"]
    for pg in range(pgs):
        until(f"group {pg} clean", lambda pg=pg: is_clean(pool_id, pg, len(pids)))
else:
    sys.exit(f"no command {command}")
cluster.shutdown()
