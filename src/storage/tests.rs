//! On a real file system: names, order, what is kept and what is removed.

use std::fs;
use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use super::*;

const BLOCK: usize = 262_144;

fn store(dir: &Path, if_exists: IfExists) -> Store {
    Store::open(dir, &Config { if_exists, ..Config::default() }).unwrap()
}

fn meta(path: &str, data: &[u8]) -> Meta {
    Meta {
        path: SafePath::parse(path.as_bytes()).unwrap(),
        size: data.len().try_into().unwrap(),
        mtime: Time { seconds: 1_000_000_000, nanoseconds: 5 },
        mode: 0o6750,
        content_crc: crc32fast::hash(data),
    }
}

fn wait(start: impl FnOnce(Done)) -> std::result::Result<Committed, Failure> {
    let (sender, receiver) = mpsc::channel();
    start(Box::new(move |result| sender.send(result).unwrap()));
    receiver.recv_timeout(Duration::from_secs(30)).unwrap()
}

fn put(store: &Store, path: &str, data: &[u8]) -> std::result::Result<Committed, Failure> {
    let meta = meta(path, data);
    let partial = store.open_partial(&meta).unwrap();
    partial.write_at(0, data).unwrap();
    wait(|done| store.commit(partial, meta, done))
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_committed_file_has_its_content_time_and_mode_and_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let committed = put(&store(dir.path(), IfExists::Rename), "a/b/c", b"data").unwrap();
    assert_eq!((committed.stored.to_string().as_str(), committed.durable), ("a/b/c", true));
    let path = dir.path().join("a/b/c");
    let stored = fs::metadata(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"data");
    assert_eq!((stored.mtime(), stored.mtime_nsec()), (1_000_000_000, 5));
    assert_eq!(stored.mode() & 0o7000, 0, "never setuid or setgid");
    assert_eq!(stored.mode() & 0o777 & !0o750, 0, "no more than the sender gave");
}

#[test]
fn a_taken_name_is_numbered_replaced_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let stored =
        |if_exists, data: &[u8]| put(&store(dir.path(), if_exists), "core", data).map(|c| c.stored.to_string());
    assert_eq!(stored(IfExists::Rename, b"1").unwrap(), "core");
    assert_eq!(stored(IfExists::Rename, b"2").unwrap(), "core-1");
    assert_eq!(stored(IfExists::Rename, b"3").unwrap(), "core-2");
    assert_eq!(stored(IfExists::Replace, b"4").unwrap(), "core");
    assert_eq!(fs::read(dir.path().join("core")).unwrap(), b"4");
    assert_eq!(stored(IfExists::Refuse, b"5").unwrap_err().refusal, Refusal::Exists);
    assert_eq!(names(dir.path()), ["core", "core-1", "core-2"], "no partial is left");
}

#[test]
fn a_directory_in_the_place_of_the_name_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("core")).unwrap();
    assert_eq!(put(&store(dir.path(), IfExists::Rename), "core", b"1").unwrap().stored.to_string(), "core-1");
    assert_eq!(put(&store(dir.path(), IfExists::Replace), "core", b"1").unwrap_err().refusal, Refusal::Exists);
}

#[test]
fn without_fsync_nothing_is_called_durable() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), &Config { fsync: false, ..Config::default() }).unwrap();
    assert!(!put(&store, "a", b"1").unwrap().durable);
}

#[test]
fn many_small_files_share_rounds_and_all_land() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), IfExists::Rename);
    let (sender, receiver) = mpsc::channel();
    for number in 0..300_u32 {
        let meta = meta(&format!("f{number}"), &number.to_be_bytes());
        let partial = store.open_partial(&meta).unwrap();
        partial.write_at(0, &number.to_be_bytes()).unwrap();
        let sender = sender.clone();
        store.commit(partial, meta, Box::new(move |result| sender.send(result).unwrap()));
    }
    for _ in 0..300 {
        assert!(receiver.recv_timeout(Duration::from_secs(30)).unwrap().unwrap().durable);
    }
    assert_eq!(names(dir.path()).len(), 300);
}

#[test]
fn a_partial_is_found_again_with_its_whole_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), IfExists::Rename);
    let data = vec![7; 4 * BLOCK];
    let meta = meta("big", &data);
    let partial = store.open_partial(&meta).unwrap();
    assert_eq!(partial.have(), 0);
    partial.write_at(0, &data[..2 * BLOCK + 100]).unwrap();
    drop(partial);
    let again = store.open_partial(&meta).unwrap();
    assert_eq!(again.have(), 2 * 262_144);
    assert_eq!(again.block_crc(1, &mut Vec::new()), Some(crc32fast::hash(&data[..BLOCK])));
    let held = store.open_partial(&meta).unwrap();
    assert_eq!(held.have(), 0, "one that is used is passed over");
    drop((again, held));
    let changed = Meta { mtime: Time { seconds: 1, nanoseconds: 0 }, ..meta };
    assert_eq!(store.open_partial(&changed).unwrap().have(), 0, "another source has another partial");
}

#[test]
fn less_than_a_block_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), IfExists::Rename);
    let partial = store.open_partial(&meta("big", &[0; 4 * BLOCK])).unwrap();
    partial.write_at(0, &[1; BLOCK - 1]).unwrap();
    drop(partial);
    assert!(names(dir.path()).is_empty());
}

#[test]
fn after_a_failed_sync_nothing_of_it_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), IfExists::Rename);
    let data = vec![0; 2 * BLOCK];
    let partial = store.open_partial(&meta("big", &data)).unwrap();
    partial.write_at(0, &data).unwrap();
    partial.sync_failed();
    assert_eq!(partial.write_at(0, &data).unwrap_err().refusal, Refusal::Failed);
    let result = wait(|done| store.commit(partial, meta("big", &data), done));
    assert_eq!(result.unwrap_err().refusal, Refusal::Failed);
    assert!(names(dir.path()).is_empty());
}

#[test]
fn a_link_in_the_place_of_a_partial_or_a_directory_is_not_followed() {
    let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = store(dir.path(), IfExists::Rename);
    let data = vec![0; 2 * BLOCK];
    let target = outside.path().join("target");
    fs::write(&target, b"precious").unwrap();
    let name = store.open_partial(&meta("big", &data)).unwrap().name.clone();
    symlink(&target, dir.path().join(&name)).unwrap();
    assert_eq!(put(&store, "big", &data).unwrap().stored.to_string(), "big");
    fs::remove_file(dir.path().join(&name)).unwrap();
    fs::hard_link(&target, dir.path().join(&name)).unwrap();
    assert_eq!(put(&store, "big", &data).unwrap().stored.to_string(), "big-1");
    symlink(outside.path(), dir.path().join("sub")).unwrap();
    let refused = store.open_partial(&meta("sub/file", b"x")).err().unwrap();
    assert_eq!(refused.refusal, Refusal::NotWritable);
    assert_eq!(fs::read(&target).unwrap(), b"precious");
    assert_eq!(names(outside.path()), ["target"]);
}

#[test]
fn files_of_the_same_size_are_found_under_the_name_and_its_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), IfExists::Rename);
    for (name, data) in [("a.gz", "1234"), ("a-1.gz", "12345"), ("a-2.gz", "5678"), ("a-4.gz", "9999")] {
        fs::write(dir.path().join(name), data).unwrap();
    }
    let found = store.same_size(&meta("a.gz", b"abcd")).unwrap();
    let paths: Vec<String> = found.iter().map(|existing| existing.path.to_string()).collect();
    assert_eq!(paths, ["a.gz", "a-2.gz"], "up to the first gap");
    assert_eq!(found[0].block_crc(0, &mut Vec::new()), Some(crc32fast::hash(b"1234")));
    let existing = found.into_iter().next().unwrap();
    assert!(wait(|done| store.confirm(existing, done)).unwrap().durable);
}

#[test]
fn a_file_over_the_limit_or_the_room_is_not_admitted() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { max_file: 10, ..Config::default() };
    let limited = Store::open(dir.path(), &config).unwrap();
    assert!(limited.admit(&meta("a", &[0; 10])).is_ok());
    assert_eq!(limited.admit(&meta("a", &[0; 11])).unwrap_err().refusal, Refusal::TooBig(10));
    let full = Store::open(dir.path(), &Config { min_free: u64::MAX, ..Config::default() }).unwrap();
    assert_eq!(full.admit(&meta("a", b"1")).unwrap_err().refusal, Refusal::NoRoom);
}

#[test]
fn a_source_that_changed_is_told_from_one_that_grew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, b"1234").unwrap();
    let source = Source::open(&path).unwrap();
    assert!(!source.check(4, source.mtime()).unwrap());
    fs::write(&path, b"12345").unwrap();
    assert!(source.check(4, source.mtime()).unwrap());
    fs::write(&path, b"123").unwrap();
    assert!(matches!(source.check(4, source.mtime()), Err(Error::SourceChanged { .. })));
    assert!(matches!(source.read_at(0, &mut [0; 4]), Err(Error::SourceChanged { .. })));
    assert!(Source::open(dir.path()).is_err(), "a directory is no source");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(Source::open(&path).unwrap().mode(), 0o640);
}

#[test]
fn old_partials_go_when_the_directory_is_opened_unless_used_or_undated() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { keep_partials: Duration::from_secs(3600), ..Config::default() };
    let store = Store::open(dir.path(), &config).unwrap();
    let dated = |name: &str, seconds| {
        let path = dir.path().join(name);
        fs::write(&path, b"x").unwrap();
        let time = std::time::UNIX_EPOCH + Duration::from_secs(seconds);
        fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    };
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    dated(".postwire-0000000000000001-0.part", now - 7200);
    dated(".postwire-0000000000000002-0.part", now - 60);
    dated(".postwire-0000000000000003-0.part", 0);
    dated(".postwire-0000000000000004-0.part", now + 100_000);
    dated("not-a-partial", now - 7200);
    let held = store.open_partial(&meta("big", &[0; 2 * BLOCK])).unwrap();
    dated(&held.name.clone(), now - 7200);
    let held_name = held.name.clone();
    Store::open(dir.path(), &config).unwrap();
    let mut expected: Vec<String> = (2..=4).map(|n| format!(".postwire-000000000000000{n}-0.part")).collect();
    expected.extend([held_name, "not-a-partial".to_owned()]);
    expected.sort();
    assert_eq!(names(dir.path()), expected);
    let undated = fs::metadata(dir.path().join(".postwire-0000000000000003-0.part")).unwrap();
    assert!(undated.mtime() > 1_767_225_600, "stamped now");
}
