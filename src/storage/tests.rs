//! The rules that a [`Store`] keeps as a whole, on a real file system.

use std::fs::{self, File};
use std::os::unix::fs::{symlink, MetadataExt};
use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::config::{MAX_FILE_BYTES, PARTIALS_OF_A_FILE_MAX};

const BLOCK: usize = 256 * 1024;
const WAIT: Duration = Duration::from_secs(20);
const MTIME: Time = Time { seconds: 1_750_000_000, nanoseconds: 123_456_789 };

fn config(if_exists: IfExists) -> Config {
    Config { if_exists, min_free: 0, max_file: MAX_FILE_BYTES, ..Config::default() }
}

fn store(if_exists: IfExists) -> (tempfile::TempDir, Store) {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path(), &config(if_exists)).unwrap();
    (root, store)
}

fn meta(path: &str, content: &[u8]) -> Meta {
    Meta {
        path: SafePath::parse(path.as_bytes()).unwrap(),
        size: u64::try_from(content.len()).unwrap(),
        mtime: MTIME,
        mode: 0o4640,
        content_crc: crc32fast::hash(content),
        is_stream: false,
    }
}

fn content(blocks: usize, seed: u8) -> Vec<u8> {
    (0..blocks * BLOCK + 7).map(|at| u8::try_from(at * 31 % 251).unwrap() ^ seed).collect()
}

fn outcome(begin: impl FnOnce(Done)) -> Result<Committed, Failure> {
    let (sender, receiver) = mpsc::channel();
    begin(Box::new(move |result| sender.send(result).unwrap()));
    receiver.recv_timeout(WAIT).unwrap()
}

/// Receives a whole file.
fn receive(store: &Store, path: &str, content: &[u8]) -> Result<Committed, Failure> {
    let meta = meta(path, content);
    store.admit(&meta)?;
    let partial = store.open_partial(&meta)?;
    for (piece, offset) in content.chunks(100_000).zip((0..).step_by(100_000)) {
        partial.write_at(offset, piece)?;
    }
    outcome(|done| store.commit(partial, meta, done))
}

/// As an offer is looked at.
fn find_equal_small(store: &Store, meta: &Meta) -> Option<Existing> {
    Existing::find_equal_small(store.admit(meta).unwrap(), meta)
}

fn stored(result: Result<Committed, Failure>) -> String {
    result.unwrap().stored.to_string()
}

fn refusal<T>(result: Result<T, Failure>) -> Refusal {
    result.err().unwrap().refusal
}

fn partials(dir: &Path) -> usize {
    let names = dir.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_encoded_bytes());
    names.filter(|name| Identity::in_name(name).is_some()).count()
}

fn same_size(store: &Store, meta: &Meta) -> Vec<Existing> {
    let place = store.find(&meta.path).unwrap();
    place.map_or_else(Vec::new, |place| store.same_size(meta, &place).unwrap())
}

#[test]
fn content_mode_and_time_are_kept_and_special_bits_are_not() {
    let (root, store) = store(IfExists::Rename);
    for content in [Vec::new(), vec![7; 10], content(5, 1)] {
        let path = format!("a/b/file-{}", content.len());
        let committed = receive(&store, &path, &content).unwrap();
        assert_eq!(committed.stored.to_string(), path);
        assert!(committed.durable);
        let path = root.path().join(path);
        let metadata = path.metadata().unwrap();
        assert_eq!(fs::read(&path).unwrap(), content);
        assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (MTIME.seconds, 123_456_789));
        assert_eq!(metadata.mode() & 0o7777, 0o640 & !store.umask.as_raw_mode());
        assert_eq!(partials(path.parent().unwrap()), 0);
    }
}

#[test]
fn a_taken_name_is_numbered_also_when_a_directory_has_it() {
    let (root, store) = store(IfExists::Rename);
    fs::create_dir(root.path().join("core")).unwrap();
    assert_eq!(stored(receive(&store, "core", b"one")), "core-1");
    assert_eq!(stored(receive(&store, "core", b"two")), "core-2");
    symlink("/nowhere", root.path().join("a.tar.gz")).unwrap();
    assert_eq!(stored(receive(&store, "a.tar.gz", b"new")), "a-1.tar.gz");
    assert_eq!(root.path().join("a.tar.gz").read_link().unwrap(), Path::new("/nowhere"));
}

#[test]
fn replacing_takes_files_and_links_and_no_directory() {
    let (root, store) = store(IfExists::Replace);
    let outside = tempfile::NamedTempFile::new().unwrap();
    symlink(outside.path(), root.path().join("a")).unwrap();
    assert_eq!(stored(receive(&store, "a", b"one")), "a");
    assert_eq!(stored(receive(&store, "a", b"two")), "a");
    assert_eq!(fs::read(root.path().join("a")).unwrap(), b"two");
    assert_eq!(outside.path().metadata().unwrap().len(), 0);
    fs::create_dir(root.path().join("dir")).unwrap();
    assert_eq!(refusal(receive(&store, "dir", b"one")), Refusal::Exists);
}

#[test]
fn refusing_names_the_reason_also_when_the_name_was_taken_meanwhile() {
    let (root, store) = store(IfExists::Refuse);
    assert_eq!(stored(receive(&store, "a", b"one")), "a");
    assert_eq!(refusal(store.admit(&meta("a", b"other"))), Refusal::Exists);
    // The same size may be the same file.
    assert!(store.admit(&meta("a", b"two")).is_ok());
    assert_eq!(refusal(store.open_partial(&meta("a", b"two"))), Refusal::Exists);
    let meta = meta("b", b"two");
    let partial = store.open_partial(&meta).unwrap();
    partial.write_at(0, b"two").unwrap();
    fs::write(root.path().join("b"), b"taken").unwrap();
    assert_eq!(refusal(outcome(|done| store.commit(partial, meta, done))), Refusal::Exists);
    assert_eq!(fs::read(root.path().join("b")).unwrap(), b"taken");
    assert_eq!(partials(root.path()), 0);
}

#[test]
fn an_equal_file_is_found_under_a_numbered_name() {
    let (_root, store) = store(IfExists::Rename);
    for content in [b"one", b"two", b"six"] {
        receive(&store, "a", content).unwrap();
    }
    let existing = find_equal_small(&store, &meta("a", b"six")).unwrap();
    let committed = outcome(|done| store.confirm(existing, done)).unwrap();
    assert_eq!((committed.stored.to_string().as_str(), committed.durable), ("a-2", true));
    assert!(find_equal_small(&store, &meta("a", b"ten")).is_none());
    assert_eq!(same_size(&store, &meta("a", b"ten")).len(), 3);
    assert_eq!(same_size(&store, &meta("a", b"four")).len(), 0);
    assert_eq!(same_size(&store, &meta("nowhere/a", b"ten")).len(), 0);
}

#[test]
fn two_runs_of_one_command_at_once_store_one_file() {
    for if_exists in [IfExists::Rename, IfExists::Refuse] {
        for content in [vec![1; 10], content(2, 1)] {
            let (root, store) = store(if_exists);
            let meta = meta("d/a.bin", &content);
            let partials_of_both = [store.open_partial(&meta).unwrap(), store.open_partial(&meta).unwrap()];
            let committed = partials_of_both.map(|partial| {
                partial.write_at(0, &content).unwrap();
                outcome(|done| store.commit(partial, meta.clone(), done)).unwrap()
            });
            assert!(committed.iter().all(|committed| committed.stored.to_string() == "d/a.bin" && committed.durable));
            assert_eq!(committed.each_ref().map(|committed| committed.already), [false, true]);
            assert_eq!(root.path().join("d").read_dir().unwrap().count(), 1);
            let other = content.iter().map(|byte| byte ^ 1).collect::<Vec<_>>();
            let partial = store.open_partial(&meta);
            if if_exists == IfExists::Rename {
                let partial = partial.unwrap();
                partial.write_at(0, &other).unwrap();
                let committed = outcome(|done| store.commit(partial, meta, done));
                assert_eq!(stored(committed), "d/a-1.bin");
            }
        }
    }
}

#[test]
fn only_the_name_itself_counts_as_there_where_names_are_not_numbered() {
    let (root, store) = store(IfExists::Replace);
    fs::write(root.path().join("a"), b"one").unwrap();
    fs::write(root.path().join("a-1"), b"two").unwrap();
    assert!(find_equal_small(&store, &meta("a", b"two")).is_none());
    assert!(find_equal_small(&store, &meta("a", b"one")).is_some());
}

#[test]
fn an_existing_file_is_not_trusted_after_it_was_exchanged() {
    let (root, store) = store(IfExists::Rename);
    fs::write(root.path().join("a"), b"one").unwrap();
    let existing = same_size(&store, &meta("a", b"one")).pop().unwrap();
    fs::write(root.path().join("other"), b"one").unwrap();
    fs::rename(root.path().join("other"), root.path().join("a")).unwrap();
    assert!(existing.block_crc(0, &mut Vec::new()).is_err());
}

#[test]
fn a_dropped_partial_is_found_again_with_its_whole_blocks() {
    let (root, store) = store(IfExists::Rename);
    let content = content(4, 2);
    let meta = meta("sub/big", &content);
    let partial = store.open_partial(&meta).unwrap();
    assert_eq!(partial.have(), 0);
    partial.write_at(0, &content[..2 * BLOCK + 5]).unwrap();
    drop(partial);
    assert_eq!(partials(&root.path().join("sub")), 1);

    let partial = store.open_partial(&meta).unwrap();
    assert_eq!(partial.have(), u64::try_from(2 * BLOCK).unwrap());
    let mut buffer = Vec::new();
    assert_eq!(partial.block_crc(1, &mut buffer).unwrap(), crc32fast::hash(&content[BLOCK..2 * BLOCK]));
    partial.write_at(partial.have(), &content[2 * BLOCK..]).unwrap();
    drop(partial);

    let partial = store.open_partial(&meta).unwrap();
    assert_eq!(partial.have(), meta.size);
    assert_eq!(stored(outcome(|done| store.commit(partial, meta, done))), "sub/big");
    assert_eq!(fs::read(root.path().join("sub/big")).unwrap(), content);
}

#[test]
fn what_no_later_run_could_use_is_not_kept() {
    let (root, store) = store(IfExists::Rename);
    let large = meta("large", &content(2, 3));
    let partial = store.open_partial(&large).unwrap();
    partial.write_at(0, &[1; 1000]).unwrap();
    drop(partial);
    assert_eq!(partials(root.path()), 0);
    let partial = store.open_partial(&large).unwrap();
    partial.write_at(0, &content(1, 3)).unwrap();
    partial.discard();
    drop(partial);
    assert_eq!(partials(root.path()), 0);
    let small = vec![1; BLOCK];
    let partial = store.open_partial(&meta("small", &small)).unwrap();
    partial.write_at(0, &small).unwrap();
    drop(partial);
    assert_eq!(partials(root.path()), 0);
}

#[test]
fn a_partial_in_use_is_left_to_its_user() {
    let (root, store) = store(IfExists::Rename);
    let content = content(1, 4);
    let meta = meta("big", &content);
    let first = store.open_partial(&meta).unwrap();
    let second = store.open_partial(&meta).unwrap();
    first.write_at(0, &content).unwrap();
    assert_eq!((first.have(), second.have(), partials(root.path())), (0, 0, 2));
    second.write_at(0, &content[..BLOCK]).unwrap();
    assert_eq!(stored(outcome(|done| store.commit(first, meta.clone(), done))), "big");
    drop(second);
    assert_eq!(partials(root.path()), 1);
}

#[test]
fn as_many_runs_may_send_one_file_as_it_may_have_partials() {
    let (_root, store) = store(IfExists::Rename);
    let meta = meta("a", &content(1, 0));
    let most = usize::try_from(PARTIALS_OF_A_FILE_MAX).unwrap();
    let mut partials: Vec<_> = (0..most).map(|_| store.open_partial(&meta).unwrap()).collect();
    assert!(store.open_partial(&meta).is_err());
    partials.pop();
    assert!(store.open_partial(&meta).is_ok());
}

#[test]
fn no_more_files_of_one_size_are_compared_than_the_limit() {
    let (root, store) = store(IfExists::Rename);
    let meta = meta("a", b"12345");
    fs::write(root.path().join("a"), "other").unwrap();
    (1..SAME_SIZE_FILES_MAX - 1)
        .for_each(|number| fs::write(root.path().join(format!("a-{number}")), "other").unwrap());
    assert_eq!(store.admit(&meta).unwrap().len(), SAME_SIZE_FILES_MAX - 1);
    for number in [SAME_SIZE_FILES_MAX - 1, SAME_SIZE_FILES_MAX] {
        fs::write(root.path().join(format!("a-{number}")), "other").unwrap();
        assert_eq!(store.admit(&meta).unwrap().len(), SAME_SIZE_FILES_MAX);
    }
}

#[test]
fn a_partial_that_may_be_another_file_is_not_used() {
    let (root, store) = store(IfExists::Rename);
    let content = content(1, 5);
    let meta = meta("big", &content);
    let name = |number| root.path().join(Identity::of(&meta).partial_name(number));
    let outside = root.path().join("outside");
    fs::write(&outside, &content[..BLOCK]).unwrap();
    symlink(&outside, name(0)).unwrap();
    fs::hard_link(&outside, name(1)).unwrap();
    fs::create_dir(name(2)).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, name(3), rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let partial = store.open_partial(&meta).unwrap();
    assert_eq!(partial.have(), 0);
    partial.write_at(0, &content).unwrap();
    assert_eq!(stored(outcome(|done| store.commit(partial, meta.clone(), done))), "big");
    assert_eq!(fs::read(&outside).unwrap(), &content[..BLOCK]);
    assert!(!name(4).exists());
}

#[test]
fn a_partial_longer_than_its_file_starts_anew() {
    let (root, store) = store(IfExists::Rename);
    let content = content(1, 6);
    let meta = meta("big", &content);
    let name = root.path().join(Identity::of(&meta).partial_name(0));
    File::create(&name).unwrap().set_len(meta.size + 1).unwrap();
    let partial = store.open_partial(&meta).unwrap();
    assert_eq!((partial.have(), name.metadata().unwrap().len()), (0, 0));
}

#[test]
fn another_time_or_size_is_another_partial() {
    let one = meta("big", b"content");
    let later = Meta { mtime: Time { nanoseconds: 1, ..MTIME }, ..one.clone() };
    let longer = Meta { size: 8, ..one.clone() };
    assert_eq!(Identity::of(&one), Identity::of(&meta("big", b"kontent")));
    for other in [later, longer, meta("big-1", b"content")] {
        assert_ne!(Identity::of(&one), Identity::of(&other));
    }
}

#[test]
fn a_sync_in_the_background_does_not_keep_a_dropped_partial_locked() {
    let (_root, store) = store(IfExists::Rename);
    let size = crate::config::SYNC_BYTES + 1;
    let meta = Meta { size, ..meta("huge", b"") };
    let partial = store.open_partial(&meta).unwrap();
    for block in 0..size / 262_144 {
        partial.write_at(block * 262_144, &[0; BLOCK]).unwrap();
    }
    drop(partial);
    assert_eq!(store.open_partial(&meta).unwrap().have(), size - 1);
}

#[test]
fn nothing_is_written_past_the_offered_size_or_after_a_failed_sync() {
    let (_root, store) = store(IfExists::Rename);
    let meta = meta("a", b"four");
    let partial = store.open_partial(&meta).unwrap();
    assert_eq!(refusal(partial.write_at(1, b"four")), Refusal::Failed);
    assert_eq!(refusal(partial.write_at(u64::MAX, b"four")), Refusal::Failed);
    partial.write_at(0, b"four").unwrap();
    // What a failed sync does.
    partial.discard();
    assert_eq!(refusal(partial.write_at(0, b"four")), Refusal::Failed);
    assert_eq!(refusal(outcome(|done| store.commit(partial, meta, done))), Refusal::Failed);
}

#[test]
fn an_incomplete_file_never_gets_a_name() {
    let (root, store) = store(IfExists::Rename);
    let content = content(2, 8);
    let meta = meta("big", &content);
    let partial = store.open_partial(&meta).unwrap();
    partial.write_at(0, &content[..BLOCK]).unwrap();
    assert_eq!(refusal(outcome(|done| store.commit(partial, meta, done))), Refusal::Failed);
    assert!(!root.path().join("big").exists());
    assert_eq!(partials(root.path()), 1);
}

#[test]
fn many_small_files_are_committed_together_beyond_the_store_s_end() {
    let (root, store) = store(IfExists::Rename);
    let (sender, receiver) = mpsc::channel();
    for number in 0..300 {
        let content = format!("file {number}").into_bytes();
        let meta = meta(&format!("d{}/f{number}", number % 3), &content);
        let partial = store.open_partial(&meta).unwrap();
        partial.write_at(0, &content).unwrap();
        let sender = sender.clone();
        store.commit(partial, meta, Box::new(move |result| sender.send(result).unwrap()));
    }
    drop((store, sender));
    let results = std::iter::from_fn(|| receiver.recv_timeout(WAIT).ok());
    let committed: Vec<Committed> = results.map(Result::unwrap).collect();
    assert_eq!(committed.len(), 300);
    assert!(committed.iter().all(|committed| committed.durable));
    for number in 0..300 {
        let path = root.path().join(format!("d{}/f{number}", number % 3));
        assert_eq!(fs::read(path).unwrap(), format!("file {number}").into_bytes());
    }
}

#[test]
fn without_syncs_nothing_is_called_durable() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path(), &Config { fsync: false, ..config(IfExists::Rename) }).unwrap();
    assert!(!receive(&store, "a", b"one").unwrap().durable);
    let existing = find_equal_small(&store, &meta("a", b"one")).unwrap();
    assert!(!outcome(|done| store.confirm(existing, done)).unwrap().durable);
}

#[test]
fn what_is_too_big_or_finds_no_room_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let limited = Config { max_file: 1000, ..config(IfExists::Rename) };
    let store = Store::open(root.path(), &limited).unwrap();
    assert_eq!(refusal(store.admit(&meta("a", &[0; 1001]))), Refusal::TooBig(1000));
    let crowded = Config { min_free: u64::MAX, ..config(IfExists::Rename) };
    let store = Store::open(root.path(), &crowded).unwrap();
    assert_eq!(refusal(store.admit(&meta("a", b"one"))), Refusal::NoRoom);
    assert_eq!(refusal(store.open_partial(&meta("a", b"one"))), Refusal::NoRoom);
    assert_eq!(partials(root.path()), 0);
    // There already: it takes no room.
    fs::write(root.path().join("a"), b"one").unwrap();
    assert!(store.admit(&meta("a", b"one")).is_ok());
}

#[test]
fn two_files_that_do_not_fit_together_are_not_both_begun() {
    let (root, store) = store(IfExists::Rename);
    let free_bytes = Dir::open(root.path()).unwrap().free_bytes().unwrap();
    let half = |path| Meta { size: free_bytes / 2 + (1 << 30), ..meta(path, b"") };
    let first = store.open_partial(&half("a")).unwrap();
    assert_eq!(refusal(store.admit(&half("b"))), Refusal::NoRoom);
    assert_eq!(refusal(store.open_partial(&half("b"))), Refusal::NoRoom);
    drop(first);
    assert!(store.admit(&half("b")).is_ok());
}

#[test]
fn partials_that_nobody_uses_go_when_room_is_short_but_not_one_s_own() {
    let root = tempfile::tempdir().unwrap();
    let (own, other) = (content(1, 1), content(1, 2));
    let (own_meta, other_meta) = (meta("own", &own), meta("other", &other));
    let roomy = Store::open(root.path(), &config(IfExists::Rename)).unwrap();
    roomy.open_partial(&own_meta).unwrap().write_at(0, &own).unwrap();
    roomy.open_partial(&other_meta).unwrap().write_at(0, &other).unwrap();
    let crowded = Config { min_free: u64::MAX, ..config(IfExists::Rename) };
    let crowded = Store::open(root.path(), &crowded).unwrap();
    assert_eq!(partials(root.path()), 2);
    assert_eq!(crowded.open_partial(&own_meta).unwrap().have(), own_meta.size);
    assert_eq!(refusal(crowded.admit(&meta("new", b"new"))), Refusal::NoRoom);
    assert_eq!(partials(root.path()), 0);
}

#[test]
fn a_place_that_can_not_be_written_is_refused_as_such() {
    let (root, store) = store(IfExists::Rename);
    fs::write(root.path().join("file"), b"").unwrap();
    assert_eq!(refusal(store.open_partial(&meta("file/a", b"one"))), Refusal::NotWritable);
    symlink("/tmp", root.path().join("link")).unwrap();
    assert_eq!(refusal(receive(&store, "link/a", b"one")), Refusal::NotWritable);
    assert!(matches!(Store::open(&root.path().join("file"), &config(IfExists::Rename)), Err(Error::File { .. })));
    assert!(matches!(Store::open(&root.path().join("none"), &config(IfExists::Rename)), Err(Error::File { .. })));
}

#[test]
fn a_write_and_a_read_of_one_partial_may_come_from_two_threads() {
    let (_root, store) = store(IfExists::Rename);
    let content = content(3, 9);
    let partial = store.open_partial(&meta("big", &content)).unwrap();
    partial.write_at(0, &content[..BLOCK]).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| partial.write_at(u64::try_from(BLOCK).unwrap(), &content[BLOCK..]).unwrap());
        let crc = partial.block_crc(0, &mut Vec::new()).unwrap();
        assert_eq!(crc, crc32fast::hash(&content[..BLOCK]));
    });
}

#[test]
fn what_took_the_place_of_a_partial_gets_no_real_name() {
    let (root, store) = store(IfExists::Rename);
    let content = content(2, 1);
    let meta = meta("file", &content);
    let partial = store.open_partial(&meta).unwrap();
    partial.write_at(0, &content).unwrap();
    let name = root.path().join(partial.name());
    fs::rename(&name, root.path().join("taken")).unwrap();
    symlink("/etc", &name).unwrap();
    assert_eq!(refusal(outcome(|done| store.commit(partial, meta, done))), Refusal::Failed);
    assert!(fs::symlink_metadata(root.path().join("file")).is_err());
    assert!(name.is_symlink(), "nor is it removed");
}
