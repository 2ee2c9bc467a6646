//! Files against peers: one large one, many small ones, near and far.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::common::{assert_same_file, random_file, Scratch, Server};
use crate::mounts::{make_ext4, Mount};
use crate::peers::{rsync, rsync_daemon, OneShot, Ssh};
use crate::process::{client, command, run, server, timed, Cost};
use crate::proxy::{Faults, Line, Proxy};
use crate::report::{bytes, median, seconds, thousands, Record, Row};
use crate::{Bench, Measured};

const GIB: u64 = 1 << 30;
const SMALL_FILE_BYTES: u64 = 4096;
const HALF_ROUND_TRIP: Duration = Duration::from_millis(25);
const ROUND_TRIP_SECONDS: f64 = 0.05;

/// One way to carry what is measured into a directory that is empty at first.
pub struct Contender<'a> {
    pub name: &'a str,
    /// Carries it, and says what that took: preparations are not counted.
    pub carry: Box<dyn FnMut() -> Cost + 'a>,
}

impl<'a> Contender<'a> {
    pub fn new(name: &'a str, carry: impl FnMut() -> Cost + 'a) -> Contender<'a> {
        Contender { name, carry: Box::new(carry) }
    }
}

/// What each took: medians over the rounds, in the order of the contenders.
fn compare(bench: &Bench, source: &str, inbox: &str, contenders: &mut [Contender<'_>]) -> Vec<Cost> {
    let mut costs = vec![Vec::new(); contenders.len()];
    for round in 0..bench.rounds {
        for turn in 0..contenders.len() {
            let at = (round + turn) % contenders.len();
            touch_as_much(source, inbox);
            costs[at].push((contenders[at].carry)());
            assert_arrived(source, inbox, contenders[at].name);
        }
    }
    let middle = |costs: &Vec<Cost>, of: fn(&Cost) -> f64| median(&costs.iter().map(of).collect::<Vec<_>>());
    let costs = costs.iter().map(|costs| Cost {
        wall_seconds: middle(costs, |cost| cost.wall_seconds),
        cpu_seconds: middle(costs, |cost| cost.cpu_seconds),
    });
    costs.collect()
}

/// A virtual machine's host may give memory back slowly, at its first touch: so as much is written and removed just before.
/// And what earlier runs left to be written to a disk is not paid for by this one.
fn touch_as_much(source: &str, inbox: &str) {
    let warm = format!("{inbox}/warm");
    run(command("cp", &["-r", source, &warm]));
    clear(inbox);
    rustix::fs::sync();
}

fn clear(inbox: &str) {
    for entry in fs::read_dir(inbox).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            fs::remove_dir_all(entry.path()).unwrap();
        } else {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}

/// Whole, and nothing else; then it is removed. A tree may lie in `inbox` itself or under its own name.
fn assert_arrived(source: &str, inbox: &str, name: &str) {
    let below = PathBuf::from(inbox).join(Path::new(source).file_name().unwrap());
    let arrived = if below.exists() { below } else { inbox.into() };
    if Path::new(source).is_file() {
        assert_same_file(source, arrived);
    } else {
        let count = |directory: &Path| fs::read_dir(directory).unwrap().count();
        assert_eq!(count(source.as_ref()), count(&arrived), "files that came by {name}");
        for entry in fs::read_dir(source).unwrap() {
            let entry = entry.unwrap();
            assert_same_file(entry.path(), arrived.join(entry.file_name()));
        }
    }
    clear(inbox);
}

/// Ours: the server stays, as in real life, so its start is not counted.
fn ours<'a>(server: &'a Server, address: String, arguments: &'a [&'a str]) -> Contender<'a> {
    Contender::new("postwire", move || timed(Some(server), || run(client(&address, arguments))))
}

fn small_file_tree(scratch: &Scratch, count: u64) -> String {
    let tree = scratch.directory("tree");
    for number in 0..count {
        random_file(format!("{tree}/{number:06}"), SMALL_FILE_BYTES as usize, number);
    }
    tree
}

fn by_nc<'a>(file: &'a str, into: &'a str) -> Contender<'a> {
    Contender::new("nc", move || {
        let nc = OneShot::nc(into);
        let port = nc.port;
        timed(None, || nc.take_from_nc(file, port))
    })
}

fn took(who: &str, time: f64) -> String {
    format!("{who} {}", seconds(time))
}

pub fn throughput(bench: &Bench) -> Measured {
    let scratch = Scratch::new();
    let size = bench.scaled(GIB);
    let (file, inbox) = (scratch.file("file", size, 1), scratch.directory("inbox"));
    let into = format!("{inbox}/file");
    let server = server(&["--dir", &inbox]);
    let arguments = ["--file", &file];
    let mut contenders = [
        ours(&server, server.address(), &arguments),
        by_nc(&file, &into),
        Contender::new("socat", || {
            let socat = OneShot::socat(&into);
            timed(None, || socat.take_from_socat(&file))
        }),
    ];
    let costs = compare(bench, &file, &inbox, &mut contenders);
    let [ours, nc, socat] = costs[..] else { unreachable!("three contenders") };
    let what = format!("{}, loopback, tmpfs to tmpfs, ours checked and durable", bytes(size));
    let (wall, cpu) = (seconds(ours.wall_seconds), seconds(ours.cpu_seconds));
    let nc_wall = took("`nc`", nc.wall_seconds);
    let socat_wall = took("`socat -b 262144`", socat.wall_seconds);
    let nc_cpu = took("`nc`", nc.cpu_seconds);
    let mut records = vec![
        Row::at_least(&[&what, &wall, &nc_wall], nc.wall_seconds / ours.wall_seconds, 1.7, 2.0),
        Row::at_least(&[&what, &wall, &socat_wall], socat.wall_seconds / ours.wall_seconds, 1.1, 1.25),
        Row::at_most(
            &["the same, processor time of both sides", &cpu, &nc_cpu],
            ours.cpu_seconds / nc.cpu_seconds.max(0.001),
            "",
            1.0,
            0.8,
        ),
    ];
    for (name, cost) in [("postwire", ours), ("nc", nc), ("socat -b 262144", socat)] {
        records.push(large_bar(name, size, cost));
    }
    Ok(records)
}

fn large_bar(label: &str, size: u64, cost: Cost) -> Record {
    let chart = format!("One file of {}, GB a second", bytes(size));
    Record::Bar { chart, label: label.into(), value: size as f64 / 1e9 / cost.wall_seconds }
}

pub fn sealed(bench: &Bench) -> Measured {
    let scratch = Scratch::new();
    let size = bench.scaled(GIB);
    let (file, inbox) = (scratch.file("file", size, 1), scratch.directory("inbox"));
    let ssh = Ssh::start(&scratch)?;
    let key = scratch.path("postwire.key");
    run(command(crate::common::BINARY, &["keygen", &key]));
    let server = server(&["--dir", &inbox, "--key-file", &key]);
    let arguments = ["--key-file", &key, "--file", &file];
    let into = format!("{inbox}/file");
    let mut contenders =
        [ours(&server, server.address(), &arguments), Contender::new("scp", || timed(None, || ssh.copy(&file, &into)))];
    let costs = compare(bench, &file, &inbox, &mut contenders);
    let [ours, scp] = costs[..] else { unreachable!("two contenders") };
    let what = format!("{}, the same, sealed with a key", bytes(size));
    let peer = took("`scp -c aes128-gcm@openssh.com`", scp.wall_seconds);
    Ok(vec![
        Row::at_least(&[&what, &seconds(ours.wall_seconds), &peer], scp.wall_seconds / ours.wall_seconds, 1.6, 2.0),
        large_bar("postwire, sealed", size, ours),
        large_bar("scp, aes128-gcm", size, scp),
    ])
}

pub fn small_files(bench: &Bench) -> Measured {
    let scratch = Scratch::new();
    let count = bench.scaled(10_000);
    let (tree, inbox) = (small_file_tree(&scratch, count), scratch.directory("inbox"));
    let daemon = rsync_daemon(&scratch, &inbox);
    let server = server(&["--dir", &inbox]);
    let arguments = ["--file", &tree];
    let mut contenders = [
        ours(&server, server.address(), &arguments),
        Contender::new("rsync", || timed(None, || rsync(&[], &tree, daemon.port))),
        Contender::new("tar", || {
            let tar = OneShot::tar(&inbox);
            timed(None, || tar.take_from_tar(&tree))
        }),
    ];
    let costs = compare(bench, &tree, &inbox, &mut contenders);
    let [ours, rsync, tar] = costs[..] else { unreachable!("three contenders") };
    let what = format!("{} files of 4 KiB, tmpfs, ours checked and durable", thousands(count));
    let peer = format!("rsync daemon {} (`tar | nc` {})", seconds(rsync.wall_seconds), seconds(tar.wall_seconds));
    let row =
        Row::at_least(&[&what, &seconds(ours.wall_seconds), &peer], rsync.wall_seconds / ours.wall_seconds, 1.5, 2.0);
    let chart = format!("{} files of 4 KiB, thousand files a second", thousands(count));
    let bar = |label: &str, cost: Cost| {
        let value = count as f64 / 1e3 / cost.wall_seconds;
        Record::Bar { chart: chart.clone(), label: label.into(), value }
    };
    Ok(vec![row, bar("postwire", ours), bar("rsync daemon", rsync), bar("tar | nc", tar)])
}

pub fn small_files_on_ext4(bench: &Bench) -> Measured {
    // The image lies on a disk: beside it is what is sent.
    let disk = env::var("BENCH_DISK").unwrap_or_else(|_| "/var/tmp".into());
    let disk = TempDir::new_in(&disk).map_err(|error| format!("can't write to {disk}: {error}"))?;
    let image = disk.path().join("image").into_os_string().into_string().unwrap();
    let scratch = Scratch::new();
    make_ext4(&image, GIB, &[]);
    let ext4 = Mount::try_new(&scratch, "ext4", &["-o", "loop", &image])?;
    let inbox = ext4.directory("inbox");
    let count = bench.scaled(2000);
    let tree = small_file_tree(&scratch, count);
    let daemon = rsync_daemon(&scratch, &inbox);
    let server = server(&["--dir", &inbox]);
    let arguments = ["--file", &tree];
    let mut contenders = [
        ours(&server, server.address(), &arguments),
        Contender::new("rsync", || timed(None, || rsync(&["--fsync"], &tree, daemon.port))),
    ];
    let costs = compare(bench, &tree, &inbox, &mut contenders);
    let [ours, rsync] = costs[..] else { unreachable!("two contenders") };
    let what = format!("{} files of 4 KiB, ext4, durable", thousands(count));
    let peer = took("rsync daemon, `--fsync`", rsync.wall_seconds);
    let ratio = rsync.wall_seconds / ours.wall_seconds;
    Ok(vec![Row::at_least(&[&what, &seconds(ours.wall_seconds), &peer], ratio, 1.3, 2.0)])
}

/// A link to a port of this machine.
pub fn link_to(port: u16, delay: Duration, rate_bytes_per_second: Option<u32>) -> Proxy {
    let line = Line { delay, rate_bytes_per_second, ..Line::default() };
    Proxy::start(
        ([127, 0, 0, 1], port).into(),
        Faults { to_server: line.clone(), to_client: line, ..Faults::default() },
    )
}

pub fn small_files_far_away(bench: &Bench) -> Measured {
    let scratch = Scratch::new();
    let count = bench.scaled(2000);
    let (tree, inbox) = (small_file_tree(&scratch, count), scratch.directory("inbox"));
    let daemon = rsync_daemon(&scratch, &inbox);
    let server = server(&["--dir", &inbox]);
    let [our_link, rsync_link] = [server.port(), daemon.port].map(|port| link_to(port, HALF_ROUND_TRIP, None));
    let arguments = ["--file", &tree];
    let mut contenders = [
        ours(&server, our_link.address().to_string(), &arguments),
        Contender::new("rsync", || timed(None, || rsync(&[], &tree, rsync_link.address().port()))),
    ];
    let costs = compare(bench, &tree, &inbox, &mut contenders);
    let [ours, rsync] = costs[..] else { unreachable!("two contenders") };
    let what = format!("{} files of 4 KiB, 50 ms round trip", thousands(count));
    let trips = |cost: Cost| (cost.wall_seconds / ROUND_TRIP_SECONDS * 100.0).round() / 100.0;
    let peer = took("rsync daemon", rsync.wall_seconds);
    let what = [&*what, &seconds(ours.wall_seconds), &peer];
    Ok(vec![Row::at_most(&what, trips(ours), "round trips", trips(rsync), 5.0)])
}

pub fn large_file_far_away(bench: &Bench) -> Measured {
    let scratch = Scratch::new();
    let size = bench.scaled(GIB);
    let (file, inbox) = (scratch.file("file", size, 1), scratch.directory("inbox"));
    let into = format!("{inbox}/file");
    let server = server(&["--dir", &inbox]);
    let link = |port| link_to(port, HALF_ROUND_TRIP, Some(100_000_000));
    let our_link = link(server.port());
    let arguments = ["--file", &file];
    let mut contenders = [
        ours(&server, our_link.address().to_string(), &arguments),
        Contender::new("nc", || {
            let nc = OneShot::nc(&into);
            let link = link(nc.port);
            timed(None, || nc.take_from_nc(&file, link.address().port()))
        }),
    ];
    let costs = compare(bench, &file, &inbox, &mut contenders);
    let [ours, nc] = costs[..] else { unreachable!("two contenders") };
    let what = format!("{}, 50 ms round trip, link of 100 MB/s", bytes(size));
    let peer = took("`nc`", nc.wall_seconds);
    let ratio = nc.wall_seconds / ours.wall_seconds;
    // As fast: what a hundredth more or less says is noise.
    Ok(vec![Row::at_least(&[&what, &seconds(ours.wall_seconds), &peer], ratio, 0.98, 1.0)])
}

pub fn one_small_file(bench: &Bench) -> Measured {
    let scratch = Scratch::new();
    let (file, inbox) = (scratch.file("file", 1024, 1), scratch.directory("inbox"));
    let into = format!("{inbox}/file");
    let server = server(&["--dir", &inbox]);
    let arguments = ["--file", &file];
    let mut contenders = [ours(&server, server.address(), &arguments), by_nc(&file, &into)];
    // So short that it takes more of them to tell.
    let often = Bench { rounds: bench.rounds * 10, ..*bench };
    let costs = compare(&often, &file, &inbox, &mut contenders);
    let [ours, nc] = costs[..] else { unreachable!("two contenders") };
    let peer = took("`nc`", nc.wall_seconds);
    let what = ["one file of 1 KiB, start to durable exit", &seconds(ours.wall_seconds), &peer];
    Ok(vec![Row::at_most(&what, ours.wall_seconds / nc.wall_seconds, "", 3.0, 1.5)])
}

/// Ours alone, for how cost grows: the median's seconds.
pub fn alone(bench: &Bench, source: &str, inbox: &str) -> f64 {
    let server = server(&["--dir", inbox]);
    let arguments = ["--file", source];
    let mut contenders = [ours(&server, server.address(), &arguments)];
    let costs = compare(bench, source, inbox, &mut contenders);
    costs[0].wall_seconds
}

/// A tree of small files elsewhere.
pub fn tree_of(scratch: &Scratch, count: u64) -> String {
    small_file_tree(scratch, count)
}
