//! The directory, its manifests or its status files get lost, and nothing is withdrawn; junk in it holds up nothing.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use sluice_directory::{STILL_MS, WORD};

use crate::harness::{OTHER, POOLS, Standalone, WEB, assert_parts};

/// Longer than a removal waits to count.
const LONG: Duration = Duration::from_millis(STILL_MS + 2_000);

fn served() -> Standalone {
    let mut s = Standalone::started(&[
        ("web.yaml", WEB),
        ("pools.yaml", POOLS),
        ("other.yaml", OTHER),
    ]);
    s.agent("d1", &["10.0.0.250"]);
    s.wait_live("web");
    s.wait_live("other");
    s
}

/// The operator still follows the manifests.
fn expect_edit(s: &mut Standalone, weight: u32) {
    s.write(
        "web.yaml",
        &WEB.replace("weight: 100", &format!("weight: {weight}")),
    );
    s.wait("an edit to count", |s| {
        (s.weights("web")? == [weight, 0]).then_some(())
    });
}

fn aside(s: &Standalone) -> PathBuf {
    s.path.with_extension("aside")
}

#[test]
fn a_directory_that_is_gone_or_replaced_withdraws_nothing() {
    let mut s = served();
    let before = s.decisions();
    let aside = aside(&s);
    fs::rename(&s.path, &aside).expect("rename");
    sleep(LONG);
    // A mount point: empty, and nothing is written there.
    fs::create_dir(&s.path).expect("create");
    sleep(LONG);
    let left = fs::read_dir(&s.path).expect("list").count();
    assert_eq!(left, 0, "nothing is written to another directory");
    fs::write(s.path.join("web.yaml"), WEB).expect("write");
    sleep(LONG);
    fs::remove_dir_all(&s.path).expect("remove");
    fs::rename(&aside, &s.path).expect("rename");
    assert_eq!(s.decisions(), before);
    s.wait_live("web");
    expect_edit(&mut s, 7);
    assert_parts(
        &s.log(),
        &["mount or create it", "another directory is in its place"],
    );
}

#[test]
fn a_directory_that_is_swapped_for_a_complete_one_counts() {
    let mut s = served();
    let before = s.virtual_server("web").expect("there").status.decision;
    let aside = aside(&s);
    fs::create_dir(&aside).expect("create");
    fs::write(
        aside.join("all.yaml"),
        format!("{WEB}---\n{POOLS}---\n{OTHER}"),
    )
    .expect("write");
    // As a link to another release is.
    let old = s.path.with_extension("old");
    fs::rename(&s.path, &old).expect("rename");
    fs::rename(&aside, &s.path).expect("rename");
    let after = s.wait("status in the new directory", |s| {
        s.virtual_server("web")?.status.decision
    });
    assert_eq!(Some(after), before);
    let second = Standalone::command(&s.path).output().expect("runs");
    assert!(!second.status.success(), "the lock is there too");
    s.write(
        "all.yaml",
        &format!(
            "{}---\n{POOLS}---\n{OTHER}",
            WEB.replace("weight: 100", "weight: 3")
        ),
    );
    s.wait("an edit to count", |s| {
        (s.weights("web")? == [3, 0]).then_some(())
    });
    fs::remove_dir_all(old).expect("remove");
}

#[test]
fn a_directory_that_is_emptied_at_once_withdraws_nothing_without_a_word() {
    let mut s = served();
    let before = s.decisions();
    for file in ["web.yaml", "pools.yaml", "other.yaml"] {
        fs::remove_file(s.path.join(file)).expect("remove");
    }
    s.pass(LONG);
    assert_eq!(s.decisions(), before);
    let report = s.wait("report", |s| s.report("web.yaml"));
    assert_parts(&report.errors.join("\n"), &["no object is left", WORD]);
    s.kill();
    s.start();
    s.pass(LONG);
    assert_eq!(s.decisions(), before, "after a restart");
    // All but one were meant.
    s.write("pools.yaml", POOLS);
    s.wait("removal", |s| {
        (s.virtual_server("web").is_none() && s.virtual_server("other").is_none()).then_some(())
    });
    assert!(s.pool("v1").is_some() && s.report("web.yaml").is_none());
    fs::remove_file(s.path.join("pools.yaml")).expect("remove");
    s.pass(LONG);
    assert!(s.pool("v1").is_some());
    s.write(WORD, "");
    s.wait("removal", |s| {
        (s.pool("v1").is_none() && s.pool("v2").is_none()).then_some(())
    });
}

#[test]
fn manifests_that_are_exchanged_file_by_file_withdraw_nothing() {
    let mut s = served();
    let before = s.decisions();
    for round in 0..2 {
        for (file, text) in [
            ("other.yaml", OTHER),
            ("pools.yaml", POOLS),
            ("web.yaml", WEB),
        ] {
            fs::remove_file(s.path.join(file)).expect("remove");
            s.pass(Duration::from_secs(1));
            assert_eq!(s.decisions(), before);
            s.write(file, &format!("# {round}\n{text}"));
            s.pass(Duration::from_millis(700));
        }
    }
    assert_eq!(s.decisions(), before);
    s.assert_quiet_log();
}

#[test]
fn a_file_that_is_truncated_and_filled_later_costs_no_outage() {
    let mut s = served();
    let before = s.decisions();
    let path = s.path.join("web.yaml");
    let new = WEB.replace("weight: 100", "weight: 40");
    // As `slow > web.yaml`.
    for (text, wait) in [
        ("", 2_000),
        (&new[..new.len() / 2], 2_000),
        (&new[..new.len() - 25], 2_000),
    ] {
        fs::write(&path, text).expect("write");
        for _ in 0..wait / 100 {
            s.pass(Duration::from_millis(100));
            assert_eq!(s.decisions(), before, "after {} bytes", text.len());
        }
    }
    fs::write(&path, &new).expect("write");
    s.wait("new weights", |s| {
        (s.weights("web")? == [40, 0]).then_some(())
    });
}

#[test]
fn status_files_that_are_removed_come_back() {
    let mut s = served();
    let before = s.decisions();
    let losses = [
        "VirtualServer/default/web.yaml",
        "RealServerPool/default/v1.yaml",
        "inventory.yaml",
        "last-good",
        "",
    ];
    for (weight, what) in (50..).zip(losses) {
        let lost = s.path.join(".status").join(what);
        if lost.is_dir() {
            fs::remove_dir_all(lost).expect("remove");
        } else {
            fs::remove_file(lost).expect("remove");
        }
        let second = Standalone::command(&s.path).output().expect("runs");
        let log = String::from_utf8_lossy(&second.stderr).into_owned();
        assert!(!second.status.success(), "{what}: a second operator runs");
        assert_parts(&log, &["operator.lock", "held by another process"]);
        s.wait(what, |s| {
            let decisions = s.try_decisions()?;
            let last_good = s.path.join(".status/last-good/web.yaml").exists();
            let is_back = decisions.virtual_servers.len() == 2 && decisions.pools == before.pools;
            (decisions.is_whole && is_back && last_good).then_some(())
        });
        s.wait_live("web");
        expect_edit(&mut s, weight);
    }
    let damaged = s.path.join(".status/RealServerPool/default/v1.yaml");
    fs::write(&damaged, "status: [").expect("write");
    s.wait("the pool", |s| {
        let decisions = s.try_decisions()?;
        (decisions.pools == before.pools).then_some(())
    });
    // A file that is nobody's does not stay.
    fs::write(
        s.path.join(".status/VirtualServer/default/forged.yaml"),
        "status: {}",
    )
    .expect("write");
    s.wait("removal", |s| {
        let forged = s.path.join(".status/VirtualServer/default/forged.yaml");
        (!forged.exists()).then_some(())
    });
}

#[test]
fn an_operator_whose_lock_is_taken_writes_nothing() {
    let mut s = served();
    fs::remove_file(s.path.join(".operator.lock")).expect("remove");
    let lock = s.directory.lock("operator");
    let Ok(lock) = lock else {
        // The operator was faster, which is as well.
        return expect_edit(&mut s, 5);
    };
    s.write("web.yaml", &WEB.replace("weight: 100", "weight: 6"));
    s.pass(Duration::from_secs(2));
    assert_eq!(s.weights("web"), Some(vec![100, 0]));
    assert_parts(&s.log(), &["stop that one first"]);
    drop(lock);
    expect_edit(&mut s, 6);
}

#[test]
fn junk_in_the_directory_holds_up_nothing() {
    let mut s = served();
    let path = |name: &str| s.path.join(name);
    symlink("loop.yaml", path("loop.yaml")).expect("link");
    symlink("web.yaml/x", path("through.yaml")).expect("link");
    symlink("/dev/zero", path("zero.yaml")).expect("link");
    fs::create_dir(path("directory.yaml")).expect("directory");
    let pipe = Command::new("mkfifo").arg(path("pipe.yaml")).status();
    assert!(pipe.expect("mkfifo").success());
    let long = format!("{}.yaml", "l".repeat(250));
    let more = WEB
        .replace("name: web", "name: more")
        .replace("port: 80", "port: 81");
    fs::write(path(&long), more).expect("write");
    // What should be files and directories of Sluice's is something else.
    fs::create_dir_all(path(".status/files/loop.yaml/x")).expect("directory");
    fs::create_dir_all(path(".status/VirtualServer/default/junk.yaml/x")).expect("directory");
    fs::write(path(".status/VirtualServer/file"), "").expect("write");
    symlink("loop", path(".status/VirtualServer/loop")).expect("link");
    s.wait_live("more");
    assert!(s.path.join(".status/last-good").join(&long).exists());
    expect_edit(&mut s, 8);
    fs::remove_file(s.path.join("other.yaml")).expect("remove");
    s.wait("removal", |s| {
        s.virtual_server("other").is_none().then_some(())
    });
    let report = s.wait("report", |s| s.report("through.yaml"));
    assert_parts(&report.errors.join("\n"), &["leads through a file"]);
    s.kill();
    s.start();
    expect_edit(&mut s, 9);
}
