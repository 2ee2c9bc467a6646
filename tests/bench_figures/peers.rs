//! Those we are measured against. Each carries one file or tree to `inbox` and waits for both its ends.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use crate::common::Scratch;
use crate::process::{command, free_port, run, start, until_listening, Daemon, Started};

/// Programs that take one connection: the listener's start is not part of what is measured.
pub struct OneShot {
    listener: Started,
    pub port: u16,
}

impl OneShot {
    /// `nc -l` into a file.
    pub fn nc(into: &str) -> OneShot {
        OneShot::start(|port| {
            let mut nc = command("nc", &["-l", "127.0.0.1", port]);
            nc.stdout(File::create(into).unwrap());
            nc
        })
    }

    /// `socat` into a file.
    pub fn socat(into: &str) -> OneShot {
        OneShot::start(|port| {
            let listen = format!("TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr");
            command("socat", &["-b", "262144", "-u", &listen, &format!("CREATE:{into}")])
        })
    }

    /// `nc -l` into `tar`.
    pub fn tar(into: &str) -> OneShot {
        OneShot::start(|port| command("sh", &["-c", "nc -l 127.0.0.1 \"$1\" | tar -x -C \"$2\"", "sh", port, into]))
    }

    fn start(listen: impl FnOnce(&str) -> Command) -> OneShot {
        let port = free_port();
        let listener = start(listen(&port.to_string()));
        until_listening(port);
        OneShot { listener, port }
    }

    /// Sends by nc, to its port or to a link's, and waits for both.
    pub fn take_from_nc(self, file: &str, port: u16) {
        let mut nc = command("nc", &["-N", "127.0.0.1", &port.to_string()]);
        nc.stdin(File::open(file).unwrap());
        run(nc);
        self.listener.finish();
    }

    pub fn take_from_socat(self, file: &str) {
        let to = format!("TCP:127.0.0.1:{}", self.port);
        run(command("socat", &["-b", "262144", "-u", &format!("FILE:{file}"), &to]));
        self.listener.finish();
    }

    pub fn take_from_tar(self, tree: &str) {
        let script = "tar -c -C \"$2\" . | nc -N 127.0.0.1 \"$1\"";
        run(command("sh", &["-c", script, "sh", &self.port.to_string(), tree]));
        self.listener.finish();
    }
}

/// An rsync daemon whose module `inbox` is a directory.
pub fn rsync_daemon(scratch: &Scratch, inbox: &str) -> Daemon {
    let port = free_port();
    let config = scratch.path("rsyncd.conf");
    // The daemon would store as nobody.
    let user = if rustix::process::geteuid().is_root() { "uid = 0\ngid = 0\n" } else { "" };
    let text = format!("use chroot = no\nreverse lookup = no\n{user}[inbox]\npath = {inbox}\nread only = no\n");
    fs::write(&config, text).unwrap();
    let arguments =
        ["--daemon", "--no-detach", "--config", &config, "--address=127.0.0.1", "--port", &port.to_string()];
    Daemon::start(port, command("rsync", &arguments))
}

/// Files, times and modes, as ours keeps them.
pub fn rsync(options: &[&str], tree: &str, port: u16) {
    let to = format!("rsync://127.0.0.1:{port}/inbox/");
    run(command("rsync", &[&["-rtp"], options, &[&format!("{tree}/"), &to]].concat()));
}

/// An sshd with its own keys and configuration.
pub struct Ssh {
    daemon: Daemon,
    key: String,
}

impl Ssh {
    pub fn start(scratch: &Scratch) -> Result<Ssh, String> {
        let sshd = "/usr/sbin/sshd";
        if !Path::new(sshd).exists() {
            return Err(format!("there is no {sshd}"));
        }
        // Where it puts its unprivileged half: compiled in.
        fs::create_dir_all("/run/sshd").map_err(|error| format!("can't make /run/sshd: {error}"))?;
        let port = free_port();
        let (host_key, key, config) = (scratch.path("host_key"), scratch.path("key"), scratch.path("sshd_config"));
        for path in [&host_key, &key] {
            run(command("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", path]));
        }
        let text = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {host_key}\nAuthorizedKeysFile {key}.pub\nStrictModes no\n\
             UsePAM no\nPidFile none\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n"
        );
        fs::write(&config, text).unwrap();
        Ok(Ssh { daemon: Daemon::start(port, command(sshd, &["-D", "-e", "-f", &config])), key })
    }

    pub fn copy(&self, file: &str, into: &str) {
        let port = self.daemon.port.to_string();
        let options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes", "LogLevel=ERROR"];
        let options: Vec<&str> = options.iter().flat_map(|option| ["-o", *option]).collect();
        let first = ["-q", "-F", "/dev/null", "-c", "aes128-gcm@openssh.com", "-P", &port, "-i", &self.key];
        run(command("scp", &[&first, &options[..], &[file, &format!("127.0.0.1:{into}")]].concat()));
    }
}

pub fn nats() -> Daemon {
    let port = free_port();
    Daemon::start(port, command("nats-server", &["-a", "127.0.0.1", "-p", &port.to_string()]))
}
