//! The configuration of a container: the OCI runtime specification's `config.json`.

use serde_json::{Value, json};

use crate::seccomp;
use crate::spawner::{CAPABILITIES, GROUP, INIT, RUN_TMP};
use crate::sys::seccomp::Instruction;

/// How much of a container is made for every run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// What must be fresh: the pid, mount and ipc namespaces, and /proc. The other namespaces are those that
    /// crun is started in.
    Least,
    /// Every namespace, and a /dev as images expect it of a container, with terminals.
    Full,
}

/// The configuration of every run of a slot whose filter knows init by `key`, with a root that runs can
/// write to if `is_writable`. `in_cgroup`: crun is started in the run's cgroup, from outside of it.
///
/// /tmp lies in the root already when crun is started. Limits and the user are set by the container's init,
/// since they differ from run to run.
pub(super) fn config(key: u64, is_writable: bool, in_cgroup: bool, extent: Extent) -> String {
    let capabilities: Vec<&str> = CAPABILITIES.iter().map(|&(name, _)| name).collect();
    let filter = seccomp::compile(seccomp::RULES, key);
    let mut config = json!({
        "ociVersion": "1.0.0",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": GROUP },
            "args": [INIT, "init"],
            "env": [],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "noNewPrivileges": true,
        },
        "root": { "path": "tree", "readonly": !is_writable },
        "annotations": { "run.oci.seccomp_bpf_data": base64(&bytes(&filter)) },
    });
    let mut mounts = vec![mount("/proc", "proc", "ro,nosuid,nodev,noexec,hidepid=2,subset=pid")];
    let mut namespaces = vec!["pid", "mount", "ipc"];
    if extent == Extent::Full {
        namespaces.extend(["uts", "network", "cgroup"]);
        mounts.extend(devices());
        config["hostname"] = "sandbox".into();
    } else if in_cgroup {
        namespaces.push("cgroup");
    }
    let namespaces: Vec<Value> = namespaces.iter().map(|kind| json!({ "type": kind })).collect();
    config["linux"] = json!({ "namespaces": namespaces });
    config["mounts"] = mounts.into();
    config.to_string()
}

/// /dev and what the specification has in it, of fixed size where it holds anything. /dev/shm is the run's
/// /tmp, as it is without this, so that it counts as the run's disk.
fn devices() -> Vec<Value> {
    let mut shared = mount("/dev/shm", "bind", "rbind,nosuid,nodev");
    shared["source"] = RUN_TMP.into();
    vec![
        mount("/dev", "tmpfs", "nosuid,noexec,strictatime,mode=755,size=64k,nr_inodes=64"),
        mount("/dev/pts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620"),
        shared,
    ]
}

fn mount(to: &str, kind: &str, options: &str) -> Value {
    let options: Vec<&str> = options.split(',').collect();
    json!({ "destination": to, "type": kind, "source": kind, "options": options })
}

/// The program as the kernel takes it: an array of struct sock_filter.
fn bytes(filter: &[Instruction]) -> Vec<u8> {
    filter
        .iter()
        .flat_map(|step| {
            let [code_low, code_high] = step.code.to_ne_bytes();
            let [a, b, c, d] = step.constant.to_ne_bytes();
            [code_low, code_high, step.jump_true, step.jump_false, a, b, c, d]
        })
        .collect()
}

/// `bytes` in the alphabet of RFC 4648, padded.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let index = (word >> (18 - 6 * place) & 63) as usize;
            let letter = ALPHABET.get(index).copied().unwrap_or(b'A');
            text.push(if place > chunk.len() { '=' } else { letter as char });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        let cases =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (plain, coded) in cases {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xbf]), "+/+/");
    }

    #[test]
    fn the_filter_is_in_the_annotation_as_the_kernel_takes_it() {
        let config: Value = serde_json::from_str(&config(7, false, false, Extent::Least)).unwrap();
        let data = config["annotations"]["run.oci.seccomp_bpf_data"].as_str().unwrap();
        let filter = seccomp::compile(seccomp::RULES, 7);
        assert_eq!(data.len(), (filter.len() * 8).div_ceil(3) * 4);
        assert_eq!(config["process"]["noNewPrivileges"], true);
    }

    #[test]
    fn a_full_container_shares_no_namespace_and_has_the_same_walls() {
        let read = |extent| serde_json::from_str::<Value>(&config(7, false, true, extent)).unwrap();
        let (least, full) = (read(Extent::Least), read(Extent::Full));
        assert_eq!(full["linux"]["namespaces"].as_array().unwrap().len(), 6);
        assert_eq!(least["linux"]["namespaces"].as_array().unwrap().len(), 4);
        assert_eq!(full["mounts"][0], least["mounts"][0]);
        for same in ["process", "root", "annotations"] {
            assert_eq!(full[same], least[same], "{same}");
        }
    }
}
