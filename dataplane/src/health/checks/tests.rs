//! Schedules and verdicts over simulated time.

use std::net::Ipv4Addr;

use serde_json::json;

use super::*;

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("shop", name)
}

fn address(number: u16) -> SocketAddr {
    let [high, low] = number.to_be_bytes();
    (Ipv4Addr::new(10, 0, high, low), 80).into()
}

fn pool(seconds: u32, servers: std::ops::Range<u16>) -> PoolChecks {
    let check = json!({"tcp": {}, "intervalSeconds": seconds, "rise": 1, "fall": 2});
    PoolChecks {
        check: Some(Arc::new(serde_json::from_value(check).unwrap())),
        warmup: None,
        servers: servers.map(address).collect(),
        lacks_port: false,
    }
}

/// Has everything that is due until `end` checked, with these outcomes, each at once. Returns when which server was.
fn run(
    checks: &mut Checks,
    end: Instant,
    outcome: impl Fn(SocketAddr) -> Result<Duration, String>,
) -> Vec<(Instant, SocketAddr)> {
    let mut checked = Vec::new();
    while let Some(due) = checks.deadline().filter(|due| *due < end) {
        while let Some(attempt) = checks.take_due(due) {
            checks.on(&attempt, outcome(attempt.server), due);
            checked.push((due, attempt.server));
        }
    }
    checked
}

#[expect(clippy::unnecessary_wraps, reason = "an outcome, as that of `fails`")]
fn passes(_: SocketAddr) -> Result<Duration, String> {
    Ok(Duration::from_millis(1))
}

fn fails(_: SocketAddr) -> Result<Duration, String> {
    Err("refused".to_owned())
}

/// Only the second server passes.
fn second_passes(server: SocketAddr) -> Result<Duration, String> {
    if server == address(1) {
        passes(server)
    } else {
        fails(server)
    }
}

fn verdicts(checks: &mut Checks) -> Verdicts {
    let mut told = checks.take_changed();
    told.remove(&key("web"))
        .flatten()
        .expect("news of the pool")
}

#[test]
fn thousands_are_checked_evenly() {
    let start = Instant::now();
    let mut checks = Checks::new(7, Memory::default());
    for number in 0..10 {
        let servers = number * 500..(number + 1) * 500;
        checks.set_pool(&key(&format!("p{number}")), Some(pool(5, servers)), start);
    }
    let checked = run(&mut checks, start + Duration::from_secs(20), passes);
    let mut bins = [0_u32; 200];
    let mut times: BTreeMap<SocketAddr, Vec<Instant>> = BTreeMap::new();
    for (at, server) in checked {
        let bin = at.duration_since(start).as_millis() / 100;
        bins[usize::try_from(bin).unwrap()] += 1;
        times.entry(server).or_default().push(at);
    }
    // 5,000 servers in 5 s are 100 in 0.1 s.
    let (least, most) = (bins.iter().min().unwrap(), bins.iter().max().unwrap());
    assert!(
        (95..=105).contains(least) && (95..=105).contains(most),
        "{least} to {most}"
    );
    assert_eq!(times.len(), 5_000);
    for at in times.values() {
        assert_eq!(at.len(), 4);
        assert!(
            at.windows(2)
                .all(|pair| pair[1] - pair[0] == Duration::from_secs(5))
        );
    }
}

#[test]
fn jitter_puts_checks_off_by_a_part_of_the_interval() {
    let start = Instant::now();
    let mut checks = Checks::new(0, Memory::default());
    let mut jittery = pool(10, 0..1);
    Arc::make_mut(jittery.check.as_mut().unwrap()).jitter_percent = 20;
    checks.set_pool(&key("web"), Some(jittery), start);
    let first = checks.deadline().unwrap();
    let checked = run(&mut checks, first + Duration::from_secs(1_000), passes);
    let late = checked
        .iter()
        .zip(0..)
        .map(|((at, _), turn)| *at - (first + Duration::from_secs(10) * turn));
    let late: Vec<Duration> = late.collect();
    assert_eq!(late.len(), 100);
    assert!(
        late.iter().all(|late| *late <= Duration::from_secs(2)),
        "{late:?}"
    );
    let early = late
        .iter()
        .filter(|late| **late < Duration::from_secs(1))
        .count();
    assert!(
        (35..=65).contains(&early),
        "{early} of 100 in the first half of two seconds"
    );
}

#[test]
fn a_check_that_is_late_does_not_make_others_follow_in_a_row() {
    let start = Instant::now();
    let mut checks = Checks::new(0, Memory::default());
    checks.set_pool(&key("web"), Some(pool(1, 0..1)), start);
    let first = checks.deadline().unwrap();
    let attempt = checks.take_due(first).expect("it is due");
    assert_eq!(checks.deadline(), None, "it is under way");
    let late = first + Duration::from_millis(3_500);
    assert_eq!(checks.on(&attempt, passes(address(0)), late), Some(true));
    assert_eq!(checks.deadline(), Some(first + Duration::from_secs(4)));
}

#[test]
fn servers_are_down_that_fail_once_another_has_passed() {
    let start = Instant::now();
    let mut checks = Checks::new(0, Memory::default());
    checks.set_pool(&key("web"), Some(pool(1, 0..3)), start);
    let told = verdicts(&mut checks);
    assert_eq!((told.up, told.unknown, told.has_passed), (0, 3, false));
    run(&mut checks, start + Duration::from_secs(3), fails);
    let told = verdicts(&mut checks);
    assert_eq!((told.down.len(), told.has_passed), (3, false));
    assert_eq!(told.down[&address(0)], "refused");
    run(&mut checks, start + Duration::from_secs(5), second_passes);
    let told = verdicts(&mut checks);
    assert_eq!((told.up, told.down.len(), told.has_passed), (1, 2, true));
    run(&mut checks, start + Duration::from_secs(7), second_passes);
    assert!(checks.take_changed().is_empty(), "nothing is new");
}

#[test]
fn an_answer_that_comes_late_is_none() {
    let start = Instant::now();
    let mut slow = pool(1, 0..1);
    Arc::make_mut(slow.check.as_mut().unwrap()).max_response_milliseconds = Some(100);
    let mut checks = Checks::new(0, Memory::default());
    checks.set_pool(&key("web"), Some(slow), start);
    run(&mut checks, start + Duration::from_secs(2), passes);
    assert_eq!(verdicts(&mut checks).up, 1);
    run(&mut checks, start + Duration::from_secs(4), |_| {
        Ok(Duration::from_millis(101))
    });
    let down = verdicts(&mut checks).down;
    assert_eq!(
        down[&address(0)],
        "answered after 101 ms, more than maxResponseMilliseconds allows (100)"
    );
}

#[test]
fn verdicts_stand_while_the_check_is_the_same() {
    let start = Instant::now();
    let mut checks = Checks::new(0, Memory::default());
    checks.set_pool(&key("web"), Some(pool(1, 0..2)), start);
    run(&mut checks, start + Duration::from_secs(3), second_passes);
    let later = start + Duration::from_secs(3);
    checks.set_pool(&key("web"), Some(pool(1, 0..3)), later);
    let told = verdicts(&mut checks);
    assert_eq!((told.up, told.down.len(), told.unknown), (1, 1, 1));
    checks.set_pool(&key("web"), Some(pool(2, 0..3)), later);
    let told = verdicts(&mut checks);
    assert_eq!(
        (told.unknown, told.has_passed),
        (3, false),
        "another check says other things"
    );
    checks.set_pool(&key("web"), None, later);
    assert_eq!(checks.take_changed()[&key("web")], None);
    assert_eq!(checks.deadline(), None);
}

#[test]
fn the_outcome_of_a_check_that_nobody_asked_for_counts_for_nothing() {
    let start = Instant::now();
    let mut checks = Checks::new(0, Memory::default());
    checks.set_pool(&key("web"), Some(pool(1, 0..1)), start);
    let attempt = checks
        .take_due(start + Duration::from_secs(1))
        .expect("it is due");
    checks.set_pool(&key("web"), Some(pool(2, 0..1)), start);
    assert_eq!(checks.on(&attempt, passes(address(0)), start), None);
    checks.set_pool(&key("web"), None, start);
    assert_eq!(checks.on(&attempt, passes(address(0)), start), None);
}

#[test]
fn a_restart_keeps_verdicts() {
    let start = Instant::now();
    let mut checks = Checks::new(0, Memory::default());
    checks.set_pool(&key("web"), Some(pool(1, 0..2)), start);
    run(&mut checks, start + Duration::from_secs(3), second_passes);
    let text = serde_json::to_string(&checks.memory()).unwrap();
    let memory: Memory = serde_json::from_str(&text).unwrap();
    assert_eq!(memory.down(&key("web")), Some(&[address(0)].into()));
    let mut after = Checks::new(0, memory);
    after.set_pool(&key("web"), Some(pool(1, 0..2)), start);
    let told = verdicts(&mut after);
    assert_eq!((told.unknown, told.has_passed), (1, true));
    assert!(told.down.contains_key(&address(0)));
    run(&mut after, start + Duration::from_secs(1), fails);
    assert_eq!(verdicts_if_any(&mut after), None, "one failure is none");
}

/// The tenths that a pool's servers have that warm up, by the last part of their address.
fn warming(checks: &mut Checks) -> Vec<(u8, u8)> {
    let warming = verdicts(checks).warming.into_iter();
    let last = |server: SocketAddr| match server.ip() {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(_) => unreachable!("no server has one"),
    };
    warming
        .map(|(server, tenths)| (last(server), tenths))
        .collect()
}

#[test]
fn who_joins_others_warms_up() {
    let start = Instant::now();
    let mut checks = Checks::new(0, Memory::default());
    let unchecked = |servers: std::ops::Range<u16>| PoolChecks {
        check: None,
        warmup: Some(Duration::from_secs(9)),
        servers: servers.map(address).collect(),
        lacks_port: false,
    };
    checks.set_pool(&key("web"), Some(unchecked(0..2)), start);
    assert_eq!(warming(&mut checks), [], "all are new");
    assert_eq!((checks.deadline(), checks.next_step()), (None, None));
    checks.set_pool(&key("web"), Some(unchecked(0..3)), start);
    assert_eq!(warming(&mut checks), [(2, 1)]);
    let mut times = Vec::new();
    while let Some(at) = checks.next_step() {
        checks.warm(at);
        times.push((at.duration_since(start).as_secs(), warming(&mut checks)));
    }
    assert_eq!(times.len(), 9);
    assert_eq!(times[0], (1, vec![(2, 2)]));
    assert_eq!(times[8], (9, vec![]));
    checks.set_pool(&key("web"), Some(unchecked(0..2)), start);
    checks.set_pool(&key("web"), Some(unchecked(0..3)), start);
    assert_eq!(warming(&mut checks), [(2, 1)], "it joins again");
    checks.set_pool(&key("web"), None, start);
    assert_eq!(checks.next_step(), None);
}

#[test]
fn who_is_up_again_warms_up() {
    let start = Instant::now();
    let mut checks = Checks::new(0, Memory::default());
    let warmed = |time| PoolChecks {
        warmup: Some(Duration::from_secs(time)),
        ..pool(1, 0..2)
    };
    checks.set_pool(&key("web"), Some(warmed(90)), start);
    run(&mut checks, start + Duration::from_secs(1), passes);
    assert_eq!(warming(&mut checks), []);
    run(&mut checks, start + Duration::from_secs(3), second_passes);
    assert_eq!(verdicts(&mut checks).down.len(), 1);
    assert_eq!(checks.next_step(), None);
    run(&mut checks, start + Duration::from_secs(4), passes);
    assert_eq!(warming(&mut checks), [(0, 1)]);
    checks.warm(start + Duration::from_secs(54));
    assert_eq!(warming(&mut checks), [(0, 6)]);
    checks.set_pool(
        &key("web"),
        Some(warmed(180)),
        start + Duration::from_secs(54),
    );
    assert_eq!(warming(&mut checks), [(0, 3)], "it takes longer now");
    run(&mut checks, start + Duration::from_secs(6), second_passes);
    assert_eq!(checks.next_step(), None, "it is down again");
    assert_eq!(verdicts(&mut checks).warming.len(), 0);
}

fn verdicts_if_any(checks: &mut Checks) -> Option<Verdicts> {
    checks.take_changed().remove(&key("web")).flatten()
}
