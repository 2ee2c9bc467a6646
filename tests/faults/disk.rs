//! Places that are full, small, hostile or odd: a file lands whole or is clearly refused, nothing hangs, nothing outside changes.

use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{chown, symlink, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::fs::{mknodat, FileType, Mode, CWD};

use crate::common::{assert_same_file, client, client_spawn, random_file, Run, Scratch, Server, BINARY};
use crate::mounts::{in_private_namespace, make_ext4, run, Mount};
use crate::proxy::{Faults, Line, Proxy};
use crate::{is_partial, json_value, names_in, pause, until, Programme, Random};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

// No room.

#[test]
#[ignore = "a fault programme: scripts/test-slow"]
fn a_full_disk_refuses_and_goes_on() {
    if !in_private_namespace("disk::a_full_disk_refuses_and_goes_on") {
        return;
    }
    let programme = Programme::new("disk: full", 20);
    for round in programme.rounds() {
        let mut random = Random::of_round(round);
        too_large_for_what_is_free(&programme);
        fills_up_in_the_middle(&mut random, &programme);
        fills_up_without_reservation(&mut random, &programme);
        no_inodes(&programme);
    }
    programme.report();
}

fn too_large_for_what_is_free(programme: &Programme) {
    let scratch = Scratch::new();
    let disk = Mount::tmpfs(&scratch, "disk", "size=8m");
    let server = Server::start(&["--dir", disk.root()]);
    let large = scratch.file("large", 20 * MIB, 1);
    let small = scratch.file("small", 3 * MIB, 2);
    let refused = client(&["--to", &server.address(), &large, &small]);
    refused.assert_code(9).assert(refused.stderr.contains("no room"), "says why");
    assert_same_file(&small, disk.path("small"));
    assert_eq!(names_in(disk.root()), ["small"]);
    client(&["--to", &server.address(), &large]).assert_code(7);
    programme.add("files too large for the disk", 2);
}

/// Another writer takes the rest of the disk while a file arrives. In memory no room is taken ahead, so this is a disk.
fn fills_up_in_the_middle(random: &mut Random, programme: &Programme) {
    let scratch = Scratch::new();
    let memory = Mount::tmpfs(&scratch, "memory", "size=300m");
    make_ext4(&memory.path("image"), 220 * MIB, &["-m", "0", "-O", "^has_journal"]);
    let disk = Mount::new(&scratch, "disk", &["-o", "loop,noatime", &memory.path("image")]);
    fs::remove_dir(disk.path("lost+found")).unwrap();
    let server = Server::start(&["--dir", disk.root(), "--min-free", "64k"]);
    let there = scratch.file("there", 2 * MIB, 3);
    client(&["--to", &server.address(), &there]).assert_code(0);

    let other = scratch.file("other", 3 * MIB, 4);
    let slow = slow_proxy(&server, 2 * MIB);
    let mut other_client = client_spawn(&["--to", &slow.address().to_string(), &other]);
    let large = scratch.file("large", 130 * MIB, random.next());
    let fast = slow_proxy(&server, 60 * MIB);
    let mut large_client = client_spawn(&["--to", &fast.address().to_string(), &large]);
    let enough = MIB + random.below(40) * MIB;
    until("both partials", || (sizes_of_partials(disk.root()).len() == 2).then_some(()));
    until("data in the large partial", || sizes_of_partials(disk.root()).into_iter().find(|&size| size >= enough));
    fill(&disk, "filler", 0);

    let refused = large_client.wait();
    refused.assert_code(7).assert(refused.stderr.contains("no room"), "says why");
    other_client.wait().assert_code(0);
    assert_same_file(&other, disk.path("other"));
    assert_eq!(sizes_of_partials(disk.root()).len(), 1, "the partial holds blocks and is kept");
    // What needs no room works on a full disk.
    let again = client(&["--to", &server.address(), "--json", &there]);
    again.assert_code(0).assert(again.stdout.contains("\"already\":true"), "already there");
    client(&["--to", &server.address(), "--text", "still there"]).assert_code(0);

    // Room for the rest is enough.
    let held = sizes_of_partials(disk.root())[0];
    fs::remove_file(disk.path("filler")).unwrap();
    fill(&disk, "filler", 130 * MIB - held + 2 * MIB);
    resumes(&server, &large, &disk.path("large"));
    programme.count("disks filled under a transfer");
}

/// The same on a file system that can't reserve: the write itself meets the end.
fn fills_up_without_reservation(random: &mut Random, programme: &Programme) {
    let scratch = Scratch::new();
    let disk = Mount::tmpfs(&scratch, "disk", "size=8m");
    let server = server_with(&["fallocate:error=EOPNOTSUPP"], &["--dir", disk.root(), "--min-free", "0"]);
    let file = scratch.file("file", 6 * MIB, random.next());
    let proxy = slow_proxy(&server, 6 * MIB);
    let mut sending = client_spawn(&["--to", &proxy.address().to_string(), &file]);
    let enough = 300 * KIB + random.below(3 * MIB);
    until("data in the partial", || sizes_of_partials(disk.root()).into_iter().find(|&size| size >= enough));
    fill(&disk, "filler", 0);
    let refused = sending.wait();
    refused.assert_code(7).assert(refused.stderr.contains("no room"), "says why");
    assert_eq!(sizes_of_partials(disk.root()).len(), 1, "the partial holds a block and is kept");
    client(&["--to", &server.address(), "--text", "still there"]).assert_code(0);
    fs::remove_file(disk.path("filler")).unwrap();
    resumes(&server, &file, &disk.path("file"));
    programme.count("disks filled under a write");
}

fn no_inodes(programme: &Programme) {
    let scratch = Scratch::new();
    let disk = Mount::tmpfs(&scratch, "disk", "size=8m,nr_inodes=20");
    let server = Server::start(&["--dir", disk.root()]);
    let slow = slow_proxy(&server, 2 * MIB);
    let large = scratch.file("large", MIB, 5);
    let mut large_client = client_spawn(&["--to", &slow.address().to_string(), &large]);
    until("the partial", || (sizes_of_partials(disk.root()).len() == 1).then_some(()));
    let files: Vec<_> = (0..40).map(|number| scratch.file(&format!("s{number}"), 100 + number, number)).collect();
    let address = server.address();
    let arguments: Vec<_> = ["--json", "--to", &address].into_iter().chain(files.iter().map(String::as_str)).collect();
    let some = client(&arguments);
    some.assert_code(9);
    let receipts = some.stdout.lines().filter(|line| json_value(line, "type") == Some("receipt")).count();
    let refused = some.stdout.lines().filter(|line| line.contains("no room")).count();
    some.assert(receipts + refused == files.len(), "each file has a receipt or the reason");
    some.assert(receipts >= 10, "what had an inode landed");
    large_client.wait().assert_code(0);
    assert_same_file(&large, disk.path("large"));
    run("mount", &["-o", "remount,nr_inodes=200", disk.root()]);
    client(&arguments).assert_code(0);
    for file in &files {
        assert_same_file(file, disk.path(Path::new(file).file_name().unwrap().to_str().unwrap()));
    }
    assert_eq!(names_in(disk.root()).len(), files.len() + 1);
    programme.add("files refused for want of an inode", refused as u64);
}

#[test]
#[ignore = "a fault programme: scripts/test-slow"]
fn a_limit_on_the_size_of_files_refuses_and_goes_on() {
    let programme = Programme::new("disk: ulimit -f", 10);
    for round in programme.rounds() {
        let scratch = Scratch::new();
        let inbox = scratch.directory("inbox");
        let mut command = Command::new("sh");
        // In units of 512 bytes.
        command.args(["-c", "ulimit -f 2048; exec \"$0\" \"$@\"", BINARY]);
        let server = Server::start_by(command, &["--dir", &inbox]);
        let large = scratch.file("large", MIB + 1 + Random::of_round(round).below(3 * MIB), round);
        let fits = scratch.file("fits", MIB, round);
        let refused = client(&["--to", &server.address(), &large]);
        refused.assert_code(7).assert(refused.stderr.contains("too big"), "says why");
        refused.assert(!refused.stderr.contains(" 0 bytes"), "says it right");
        client(&["--to", &server.address(), &fits]).assert_code(0);
        assert_same_file(&fits, format!("{inbox}/fits"));
        programme.count("files over the limit");
    }
    programme.report();
}

// Hostile directories.

/// What stands where a file or its partial should go.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Thing {
    LinkToFile,
    LinkToNothing,
    LinkToDirectory,
    HardLink,
    Fifo,
    Socket,
    Device,
    Directory,
    /// Bytes, in the part of the offered size in percent; of somebody else or not.
    Garbage {
        percent: u64,
        foreign: bool,
    },
}

impl Thing {
    fn any(random: &mut Random) -> Thing {
        match random.below(12) {
            0 => Thing::LinkToFile,
            1 => Thing::LinkToNothing,
            2 => Thing::LinkToDirectory,
            3 => Thing::HardLink,
            4 => Thing::Fifo,
            5 => Thing::Socket,
            6 => Thing::Device,
            7 => Thing::Directory,
            _ => Thing::Garbage { percent: random.below(6) * 25, foreign: random.below(2) == 0 },
        }
    }

    /// Puts it at `path`; `outside` has a `target`, a `directory`, and nothing called `nothing`.
    fn put(self, path: &str, outside: &str, size: u64, random: &mut Random) {
        match self {
            Thing::LinkToFile => symlink(format!("{outside}/target"), path).unwrap(),
            Thing::LinkToNothing => symlink(format!("{outside}/nothing"), path).unwrap(),
            Thing::LinkToDirectory => symlink(format!("{outside}/directory"), path).unwrap(),
            Thing::HardLink => fs::hard_link(format!("{outside}/target"), path).unwrap(),
            Thing::Fifo => mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap(),
            Thing::Socket => drop(UnixListener::bind(path).unwrap()),
            // Where devices can't be made, a FIFO will do.
            Thing::Device => mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), 0x103)
                .unwrap_or_else(|_| Thing::Fifo.put(path, outside, size, random)),
            Thing::Directory => {
                fs::create_dir(path).unwrap();
                fs::write(format!("{path}/inside"), "precious").unwrap();
            }
            Thing::Garbage { percent, foreign } => {
                random_file(path, usize::try_from(size * percent / 100).unwrap(), random.next());
                if foreign && rustix::process::geteuid().is_root() {
                    chown(path, Some(65534), Some(65534)).unwrap();
                }
            }
        }
    }
}

/// A tree that no transfer may change, and how it was.
struct Outside {
    path: String,
    before: Vec<String>,
}

impl Outside {
    /// `content` is what stands in `target`.
    fn new(scratch: &Scratch, content: &[u8]) -> Outside {
        let path = scratch.directory("outside");
        fs::create_dir(format!("{path}/directory")).unwrap();
        fs::write(format!("{path}/directory/file"), "precious").unwrap();
        fs::write(format!("{path}/target"), content).unwrap();
        let before = picture(&path);
        Outside { path, before }
    }

    #[track_caller]
    fn assert_same(&self, run: &Run) {
        let now = picture(&self.path);
        run.assert(self.before == now, &format!("nothing outside changes: {:#?} then {now:#?}", self.before));
    }
}

/// All that can be seen of a tree, but for link counts and the times of reading.
fn picture(directory: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for name in names_in(directory) {
        let path = format!("{directory}/{name}");
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = if meta.is_file() { crc32fast::hash(&fs::read(&path).unwrap()) } else { 0 };
        let times = (meta.mtime(), meta.mtime_nsec());
        lines.push(format!("{path} {:o} {} {} {times:?} {content:08x}", meta.mode(), meta.uid(), meta.size()));
        if meta.is_dir() {
            lines.extend(picture(&path));
        }
    }
    lines
}

#[test]
#[ignore = "a fault programme: scripts/test-slow"]
fn what_stands_where_a_file_goes_is_passed_over() {
    let programme = Programme::new("disk: hostile names", 400);
    for round in programme.rounds() {
        let mut random = Random::of_round(round);
        let scratch = Scratch::new();
        let size = if random.below(4) == 0 { random.below(200 * KIB) } else { 300 * KIB + random.below(900 * KIB) };
        let file = scratch.file("file.bin", size, random.next());
        let content = fs::read(&file).unwrap();
        let outside_has_it = random.below(3) == 0;
        let outside = Outside::new(&scratch, if outside_has_it { &content } else { b"precious" });
        let inbox = scratch.directory("inbox");
        let mut things = Vec::new();
        let partial = if size > 256 * KIB { Some(partial_name(&scratch, &file)) } else { None };
        let partials =
            (0..3).filter_map(|number| Some(partial.as_ref()?.replace("-0.part", &format!("-{number}.part"))));
        for name in ["file.bin", "file-1.bin"].into_iter().map(str::to_owned).chain(partials) {
            if random.below(2) == 0 {
                let thing = Thing::any(&mut random);
                thing.put(&format!("{inbox}/{name}"), &outside.path, size, &mut random);
                things.push((name, thing));
            }
        }
        let way = ["rename", "replace", "refuse"][random.below(3) as usize];
        let server = Server::start(&["--dir", &inbox, "--if-exists", way]);
        let sent = client(&["--json", "--to", &server.address(), &file]);
        let round = format!("round {round}, {way}, {size} bytes, {things:?}");

        outside.assert_same(&sent);
        let at_name = things.iter().find(|(name, _)| name == "file.bin").map(|(_, thing)| *thing);
        let is_equal = |thing| {
            (thing == Thing::HardLink && outside_has_it)
                || (size == 0 && matches!(thing, Thing::Garbage { .. }))
                || (thing == Thing::HardLink && content == b"precious")
        };
        let must_refuse = match (way, at_name) {
            ("refuse", Some(thing)) => !is_equal(thing),
            ("replace", Some(Thing::Directory)) => true,
            _ => false,
        };
        // A numbered name that holds the same counts as there in every mode.
        let numbered_equal = things.iter().any(|(name, thing)| name == "file-1.bin" && is_equal(*thing));
        if must_refuse && !(sent.code == 0 && numbered_equal) {
            sent.assert(sent.code == 7, &format!("{round}: refused"));
            sent.assert(sent.stdout.contains("the name is taken"), &format!("{round}: says why"));
            programme.count("refused");
        } else {
            sent.assert(sent.code == 0, &format!("{round}: lands"));
            assert_landed(&sent, &file, &inbox, &round);
            programme.count("landed");
        }
        programme.add("things in the way", things.len() as u64);
        assert_goes_on(&scratch, server);
    }
    programme.report();
}

#[test]
#[ignore = "a fault programme: scripts/test-slow"]
fn a_directory_that_changes_during_a_transfer_misleads_nobody() {
    let programme = Programme::new("disk: hostile moments", 150);
    for round in programme.rounds() {
        let mut random = Random::of_round(round);
        let scratch = Scratch::new();
        let size = MIB + random.below(MIB);
        let file = scratch.file("file.bin", size, random.next());
        let outside = Outside::new(&scratch, b"precious");
        let inbox = scratch.directory("inbox");
        let way = ["rename", "replace", "refuse"][random.below(3) as usize];
        let server = Server::start(&["--dir", &inbox, "--if-exists", way]);
        let proxy = slow_proxy(&server, 4 * MIB);
        let mut sending = client_spawn(&["--json", "--to", &proxy.address().to_string(), &file]);
        let partial = until("the partial", || names_in(&inbox).into_iter().find(|name| is_partial(name)));
        pause(Duration::from_millis(random.below(150)));

        let path = |name: &str| format!("{inbox}/{name}");
        let moved = scratch.path("moved");
        let mut lands_in = inbox.clone();
        let thing = Thing::any(&mut random);
        // Whether somebody took the partial away.
        let mut is_gone = false;
        let act = random.below(7);
        match act {
            0 | 1 => {
                fs::rename(&inbox, &moved).unwrap();
                lands_in = moved;
                if act == 0 {
                    fs::create_dir(&inbox).unwrap();
                } else {
                    symlink(&outside.path, &inbox).unwrap();
                }
            }
            2 => thing.put(&path("file.bin"), &outside.path, size, &mut random),
            3 | 4 => {
                is_gone = fs::rename(path(&partial), path("taken")).is_ok();
                if act == 4 {
                    thing.put(&path(&partial), &outside.path, size, &mut random);
                }
            }
            5 => drop(fs::set_permissions(path(&partial), Permissions::from_mode(0o000))),
            // What somebody with our own rights writes into it meanwhile is theirs, as it would be after the receipt.
            _ => drop(fs::hard_link(path(&partial), path("linked"))),
        }
        let sent = sending.wait();
        let round = format!("round {round}, {way}, act {act}, {thing:?}");
        outside.assert_same(&sent);
        if sent.code == 0 {
            assert_landed(&sent, &file, &lands_in, &round);
            programme.count("landed");
        } else {
            let may_refuse = is_gone || (act == 2 && (way == "refuse" || thing == Thing::Directory));
            sent.assert(sent.code == 7 && may_refuse, &format!("{round}: lands, or is refused where it must be"));
            programme.count("refused");
        }
        assert_goes_on(&scratch, server);
    }
    programme.report();
}

/// The server takes the next file, and ends when told.
fn assert_goes_on(scratch: &Scratch, server: Server) {
    let small = scratch.file("small", 10, 1);
    client(&["--to", &server.address(), &small]).assert_code(0);
    server.terminate();
}

// Odd file systems.

#[test]
#[ignore = "a fault programme: scripts/test-slow"]
fn what_a_file_system_does_not_offer_is_done_without() {
    const ANSWERS: &[&[&str]] = &[
        &["renameat2:error=EINVAL"],
        &["renameat2:error=ENOSYS"],
        &["renameat2:error=EOPNOTSUPP"],
        &["renameat2:error=EPERM"],
        &["renameat2:error=EINVAL", "linkat:error=EPERM"],
        &["renameat2:error=EINVAL", "linkat:error=EOPNOTSUPP"],
        &["renameat2:error=ENOSYS", "linkat:error=ENOSYS"],
        &["fallocate:error=EOPNOTSUPP"],
        &["fallocate:error=ENOSYS"],
        &["flock:error=ENOLCK"],
        &["flock:error=ENOSYS"],
        &["flock:error=EOPNOTSUPP"],
        &["fchmod:error=EPERM"],
        &["fchmod:error=EOPNOTSUPP"],
        &["utimensat:error=EPERM"],
        &["utimensat:error=ENOSYS"],
        &["syncfs:error=ENOSYS"],
        &["fstatfs:error=ENOSYS"],
        &["fsync:error=EINVAL"],
        &["fsync:error=ENOSYS"],
        &[
            "renameat2:error=EINVAL",
            "linkat:error=EPERM",
            "fallocate:error=EOPNOTSUPP",
            "flock:error=ENOSYS",
            "fsync:error=EINVAL",
        ],
    ];
    let programme = Programme::new("disk: not offered", 1);
    for answers in ANSWERS {
        for way in ["rename", "replace"] {
            let scratch = Scratch::new();
            let inbox = scratch.directory("inbox");
            // A file that can't be synced is an error; a directory that can't is a fact.
            let only_directories = answers.iter().any(|answer| answer.starts_with("fsync"));
            let paths: &[&str] = if only_directories { &["-P", &inbox] } else { &[] };
            let server = server_on(paths, answers, &["--dir", &inbox, "--if-exists", way]);
            let is_durable = !only_directories;
            send_all_kinds(&scratch, &server, &inbox, way, is_durable, &format!("{answers:?}"));
            programme.count("answers");
        }
    }
    programme.report();
}

#[test]
#[ignore = "a fault programme: scripts/test-slow"]
fn other_file_systems_take_files() {
    if !in_private_namespace("disk::other_file_systems_take_files") {
        return;
    }
    let programme = Programme::new("disk: other file systems", 1);
    let scratch = Scratch::new();
    let memory = Mount::tmpfs(&scratch, "memory", "size=400m");
    let layers: Vec<_> = ["lower", "upper", "work"].into_iter().map(|name| memory.directory(name)).collect();
    fs::write(memory.path("lower/a-file-of-the-lower-layer"), "x").unwrap();
    let overlay = format!("lowerdir={},upperdir={},workdir={}", layers[0], layers[1], layers[2]);
    make_ext4(&memory.path("ext2"), 32 * MIB, &["-t", "ext2"]);
    let image = |kind: &str| memory.path(kind);
    let made = |program: &str, arguments: &[&str]| {
        Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
    };
    File::create(image("vfat")).unwrap().set_len(64 * MIB).unwrap();
    File::create(image("xfs")).unwrap().set_len(320 * MIB).unwrap();
    File::create(image("btrfs")).unwrap().set_len(128 * MIB).unwrap();
    made("mkfs.vfat", &[&image("vfat")]);
    made("mkfs.xfs", &["-q", &image("xfs")]);
    made("mkfs.btrfs", &["-q", &image("btrfs")]);
    let kinds: [(&str, &[&str]); 7] = [
        ("tmpfs", &["-t", "tmpfs", "tmpfs"]),
        ("ramfs", &["-t", "ramfs", "ramfs"]),
        ("overlay", &["-t", "overlay", "-o", &overlay, "overlay"]),
        ("ext2", &["-o", "loop", &image("ext2")]),
        ("vfat", &["-o", "loop", &image("vfat")]),
        ("xfs", &["-o", "loop", &image("xfs")]),
        ("btrfs", &["-o", "loop", &image("btrfs")]),
    ];
    for (kind, arguments) in kinds {
        for way in ["rename", "replace"] {
            let scratch = Scratch::new();
            let mount = match Mount::try_new(&scratch, kind, arguments) {
                Ok(mount) => mount,
                Err(why) => {
                    println!("{kind}: skipped: {}", why.lines().next().unwrap_or_default());
                    break;
                }
            };
            let inbox = mount.directory(way);
            let server = Server::start(&["--dir", &inbox, "--if-exists", way]);
            send_all_kinds(&scratch, &server, &inbox, way, true, kind);
            server.terminate();
            programme.count(kind);
        }
    }
    programme.report();
}

/// Sends small and large files, one of them to a taken name, twice: all land, then all are there.
fn send_all_kinds(scratch: &Scratch, server: &Server, inbox: &str, way: &str, is_durable: bool, what: &str) {
    let mut files: Vec<_> =
        (0..12).map(|number| scratch.file(&format!("s{number}.bin"), number * 3000, number)).collect();
    files.push(scratch.file("large.bin", 3 * MIB + 17, 100));
    files.push(scratch.file("taken.bin", 700 * KIB, 101));
    fs::write(format!("{inbox}/taken.bin"), "what was here before").unwrap();
    let address = server.address();
    let arguments: Vec<_> = ["--json", "--to", &address].into_iter().chain(files.iter().map(String::as_str)).collect();
    for is_again in [false, true] {
        let sent = client(&arguments);
        let round = format!("{what}, {way}, again: {is_again}");
        sent.assert(sent.code == 0, &format!("{round}: all land"));
        for file in &files {
            let receipt = assert_landed(&sent, file, inbox, &round);
            sent.assert(json_value(&receipt, "already") == Some(&is_again.to_string()), &format!("{round}: already"));
            let durable = json_value(&receipt, "durable") == Some(&is_durable.to_string());
            sent.assert(durable, &format!("{round}: durable is {is_durable}"));
        }
    }
    if way == "rename" {
        assert_eq!(fs::read(format!("{inbox}/taken.bin")).unwrap(), b"what was here before", "{what}");
    }
    let expected = files.len() + usize::from(way == "rename");
    let names = names_in(inbox);
    let names: Vec<_> = names.iter().filter(|name| name.contains(".bin") || is_partial(name)).collect();
    assert_eq!(names.len(), expected, "{what}, {way}: no copies, no partials: {names:?}");
}

#[test]
#[ignore = "a fault programme: scripts/test-slow"]
fn two_servers_on_one_directory_lose_nothing() {
    let programme = Programme::new("disk: two servers", 60);
    for round in programme.rounds() {
        let mut random = Random::of_round(round);
        let scratch = Scratch::new();
        let inbox = scratch.directory("inbox");
        // In half of the rounds on a file system that offers only links, in some on one that offers neither those.
        let servers: Vec<_> = match random.below(3) {
            0 => (0..2).map(|_| server_with(&["renameat2:error=EINVAL"], &["--dir", &inbox])).collect(),
            _ => (0..2).map(|_| Server::start(&["--dir", &inbox])).collect(),
        };
        let sizes: Vec<u64> =
            (0..25).map(|number| random.below(if number < 20 { 20 * KIB } else { 2 * MIB }) + 1).collect();
        let is_equal = random.below(4) == 0;
        let stamp = std::time::SystemTime::now();
        let sides: Vec<Vec<String>> = (0..2)
            .map(|side| {
                let directory = scratch.directory(&format!("side-{side}"));
                let path = |number| format!("{directory}/f{number}.bin");
                for (number, &size) in sizes.iter().enumerate() {
                    let seed = if is_equal { round } else { round * 2 + side };
                    random_file(path(number), size.try_into().unwrap(), seed * 100 + number as u64);
                    // The same partial fits both.
                    File::options().write(true).open(path(number)).unwrap().set_modified(stamp).unwrap();
                }
                (0..sizes.len()).map(path).collect()
            })
            .collect();
        let mut clients: Vec<_> = (0..2)
            .map(|side| {
                let address = servers[side].address();
                let files = sides[side].iter().map(String::as_str);
                client_spawn(&["--json", "--to", &address].into_iter().chain(files).collect::<Vec<_>>())
            })
            .collect();
        let runs: Vec<_> = clients.iter_mut().map(|client| client.wait()).collect();
        let mut stored = Vec::new();
        for (run, files) in runs.iter().zip(&sides) {
            run.assert(run.code == 0, &format!("round {round}: all land"));
            for file in files {
                let receipt = assert_landed(run, file, &inbox, &format!("round {round}"));
                stored.push(json_value(&receipt, "stored").unwrap().to_owned());
            }
        }
        let names = names_in(&inbox);
        assert!(!names.iter().any(|name| is_partial(name)), "round {round}: no partial is left: {names:?}");
        stored.sort();
        stored.dedup();
        assert_eq!(stored, names, "round {round}: each name is in a receipt");
        // One byte may be the same on both sides.
        if !is_equal && sizes.iter().all(|&size| size > 8) {
            assert_eq!(names.len(), 2 * sizes.len(), "round {round}: each file has a name of its own");
        }
        programme.add("files", stored.len() as u64);
    }
    programme.report();
}

// What the programmes share.

/// The receipt of a file that must be there, whole, as a regular file.
#[track_caller]
fn assert_landed(run: &Run, file: &str, inbox: &str, round: &str) -> String {
    let name = Path::new(file).file_name().unwrap().to_str().unwrap();
    let is_its = |line: &&str| json_value(line, "type") == Some("receipt") && json_value(line, "name") == Some(name);
    let receipt = run.stdout.lines().find(is_its);
    run.assert(receipt.is_some(), &format!("{round}: {name} has a receipt"));
    let receipt = receipt.unwrap().to_owned();
    let stored = format!("{inbox}/{}", json_value(&receipt, "stored").unwrap());
    let is_regular = fs::symlink_metadata(&stored).is_ok_and(|meta| meta.is_file());
    run.assert(is_regular, &format!("{round}: {stored} is a regular file"));
    let is_same = fs::read(&stored).unwrap() == fs::read(file).unwrap();
    run.assert(is_same, &format!("{round}: {stored} is right"));
    receipt
}

/// The name that the first partial of a file gets.
fn partial_name(scratch: &Scratch, file: &str) -> String {
    let elsewhere = scratch.directory("elsewhere");
    let server = Server::start(&["--dir", &elsewhere]);
    let proxy = slow_proxy(&server, 64 * KIB);
    let _sending = client_spawn(&["--to", &proxy.address().to_string(), file]);
    until("a partial", || names_in(&elsewhere).into_iter().find(|name| is_partial(name)))
}

/// Of those in a directory.
pub fn sizes_of_partials(directory: &str) -> Vec<u64> {
    let names = names_in(directory).into_iter().filter(|name| is_partial(name));
    // One that got its name in this moment is none.
    names.filter_map(|name| fs::metadata(format!("{directory}/{name}")).ok()).map(|meta| meta.len()).collect()
}

/// Writes a file until so many bytes are left on the disk.
fn fill(disk: &Mount, name: &str, leave_bytes: u64) {
    let mut file = File::create(disk.path(name)).unwrap();
    let free = || {
        let stat = rustix::fs::statvfs(disk.root()).unwrap();
        stat.f_bavail * stat.f_frsize
    };
    let part = vec![b'x'; 4096];
    while free() > leave_bytes {
        match file.write_all(&part) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => return,
            Err(error) => panic!("can't fill the disk: {error}"),
        }
    }
}

/// The command that was refused for want of room lands, and not from the beginning.
#[track_caller]
fn resumes(server: &Server, file: &str, stored: &str) {
    let again = client(&["--json", "--to", &server.address(), file]);
    again.assert_code(0);
    assert_same_file(file, stored);
    let resumed = again.stdout.lines().find_map(|line| json_value(line, "resumed_bytes"));
    again.assert(resumed.is_some_and(|bytes| bytes != "0"), "it goes on where it was");
}

/// A line to a server, of so many bytes a second.
pub fn slow_proxy(server: &Server, bytes_per_second: u64) -> Proxy {
    let to_server = Line { rate_bytes_per_second: Some(bytes_per_second.try_into().unwrap()), ..Line::default() };
    Proxy::start(([127, 0, 0, 1], server.port()).into(), Faults { to_server, ..Faults::default() })
}

/// A server whose system calls answer so: `renameat2:error=EINVAL`.
fn server_with(answers: &[&str], arguments: &[&str]) -> Server {
    server_on(&[], answers, arguments)
}

/// The same, with further options of `strace`.
fn server_on(options: &[&str], answers: &[&str], arguments: &[&str]) -> Server {
    let mut command = Command::new("strace");
    // As a grandchild (-D), so that the process that a test ends is the server: one whose tracer is killed lives on.
    command.args(["-D", "-f", "-qq", "-o", "/dev/null"]).args(options);
    let calls: Vec<_> = answers.iter().map(|answer| answer.split(':').next().unwrap()).collect();
    command.args(["-e", &format!("trace={}", calls.join(","))]);
    for answer in answers {
        command.args(["-e", &format!("inject={answer}")]);
    }
    command.args(["--", BINARY]);
    Server::start_by(command, arguments)
}
