//! The settings' promises.

use crate::config::Config;

#[test]
fn an_unknown_key_is_refused_by_name() {
    let message = toml::from_str::<Config>("slotz = 3").unwrap_err().to_string();
    assert!(message.contains("slotz"), "{message}");
}

#[test]
fn what_is_printed_is_what_is_read() {
    let text = Config::default().to_string();
    let again: Config = toml::from_str(&text).unwrap();
    assert_eq!(again.to_string(), text);
    again.check().unwrap();
}

#[test]
fn an_open_door_needs_a_token() {
    let open = Config { listen: "0.0.0.0:8080".into(), ..Config::default() };
    let message = open.check().unwrap_err().to_string();
    assert!(message.starts_with("listen = \"0.0.0.0:8080\": expected token_file"), "{message}");
    Config { token_env: Some("TOKEN".into()), ..open }.check().unwrap();
    Config { listen: "[::1]:0".into(), ..Config::default() }.check().unwrap();
    Config { listen: "unix:/run/x".into(), ..Config::default() }.check().unwrap();
    assert!(Config { listen: "localhost".into(), ..Config::default() }.check().is_err());
}
