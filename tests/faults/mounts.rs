//! File systems and networks of our own, in namespaces that end with the programme: nothing stays, however it ends.

use std::env;
use std::fs;
use std::process::{Command, Output};

use crate::common::Scratch;

/// Says that the process is in namespaces of its own.
const PRIVATE: &str = "POSTWIRE_FAULTS_PRIVATE";

/// What a programme that mounts needs: a namespace, a tmpfs, a loop device with ext4 on it.
const PROBE: &str = "mount -t tmpfs none \"$0\" && truncate -s 4M \"$0/image\" && mkfs.ext4 -q \"$0/image\" \
    && mkdir \"$0/at\" && mount -o loop \"$0/image\" \"$0/at\" && umount \"$0/at\" && umount \"$0\"";

/// What a programme needs that connects networks: a place for their names, one of them, and a line to it.
const NETWORK_PROBE: &str = "mount -t tmpfs none /run && ip netns add probe \
    && ip link add probe0 type veth peer name up0 netns probe && nsenter --net=/run/netns/probe true";

/// Runs the test of this name again in a mount namespace of its own; true in there. Where nothing can be mounted it prints that
/// it is skipped, and why.
pub fn in_private_namespace(test: &str) -> bool {
    again_in(test, &["--mount"], PROBE)
}

/// The same in a network of its own besides, where others can be connected to it.
pub fn in_private_network(test: &str) -> bool {
    again_in(test, &["--mount", "--net"], NETWORK_PROBE)
}

fn again_in(test: &str, namespaces: &[&str], probe: &str) -> bool {
    if env::var_os(PRIVATE).is_some() {
        return true;
    }
    let scratch = Scratch::new();
    let unshare = [namespaces, &["--propagation", "private", "--"]].concat();
    let probe = Command::new("unshare").args(&unshare).args(["sh", "-c", probe, &scratch.directory("probe")]).output();
    match probe {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr);
            println!("{test}: skipped, no namespaces of its own: {}", why.lines().next().unwrap_or_default());
            return false;
        }
        Err(error) => {
            println!("{test}: skipped, there is no unshare: {error}");
            return false;
        }
    }
    let mut command = Command::new("unshare");
    command.args(&unshare).arg(env::current_exe().unwrap());
    command.args([test, "--exact", "--ignored", "--nocapture", "--test-threads", "1"]).env(PRIVATE, "1");
    assert!(command.status().unwrap().success(), "{test} failed in its namespace");
    false
}

/// A mounted file system, unmounted when dropped.
pub struct Mount(String);

impl Mount {
    /// Mounts on a directory of a scratch, which it makes.
    #[track_caller]
    pub fn new(scratch: &Scratch, name: &str, arguments: &[&str]) -> Mount {
        Mount::try_new(scratch, name, arguments).unwrap_or_else(|why| panic!("can't mount {arguments:?}: {why}"))
    }

    /// The same, of a kind that the kernel may not know.
    pub fn try_new(scratch: &Scratch, name: &str, arguments: &[&str]) -> Result<Mount, String> {
        let at = scratch.directory(name);
        let output = Command::new("mount").args(arguments).arg(&at).output().unwrap();
        if output.status.success() {
            Ok(Mount(at))
        } else {
            Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
        }
    }

    /// A tmpfs with such options.
    #[track_caller]
    pub fn tmpfs(scratch: &Scratch, name: &str, options: &str) -> Mount {
        Mount::new(scratch, name, &["-t", "tmpfs", "-o", options, "tmpfs"])
    }

    /// The path of `name` in it, which need not exist.
    pub fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.0)
    }

    /// Makes a directory in it.
    pub fn directory(&self, name: &str) -> String {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Where it is mounted.
    pub fn root(&self) -> &str {
        &self.0
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Whoever was killed may need a moment more to let go: then it goes with the last of them.
        if !run_quietly("umount", &[&self.0]).status.success() {
            run_quietly("umount", &["--lazy", &self.0]);
        }
    }
}

/// Stops every write to a file system at once, until dropped.
pub struct Frozen<'a>(&'a Mount);

impl Frozen<'_> {
    pub fn new(mount: &Mount) -> Frozen<'_> {
        run("fsfreeze", &["--freeze", &mount.0]);
        Frozen(mount)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        run_quietly("fsfreeze", &["--unfreeze", &self.0 .0]);
    }
}

/// Makes an empty image of so many bytes and an ext4 in it.
pub fn make_ext4(image: &str, size_bytes: u64, options: &[&str]) {
    fs::File::create(image).unwrap().set_len(size_bytes).unwrap();
    run("mkfs.ext4", &[&["-q", "-F"], options, &[image]].concat());
}

/// Runs a tool, which must end well.
#[track_caller]
pub fn run(program: &str, arguments: &[&str]) {
    let output = run_quietly(program, arguments);
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn run_quietly(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("can't run {program}: {error}"))
}
