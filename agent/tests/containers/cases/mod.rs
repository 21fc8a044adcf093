//! The cases, by what they are about.

mod files;
mod lifecycle;
mod limits;
mod pod;
mod privileges;
mod service;
mod streams;

use crate::fixture::{CaseFuture, Fixture};

pub type Case = fn(Fixture) -> CaseFuture;

macro_rules! cases {
    ($($place:ident: $($name:ident),* $(,)?);* $(;)?) => {
        pub const ALL: &[(&str, Case)] =
            &[$($((stringify!($name), |fixture| Box::pin($place::$name(fixture)))),*),*];
    };
}

cases![
    lifecycle:
        container_that_echoes_ends_with_its_output,
        container_exit_code_and_signal_are_reported_as_they_were,
        container_sees_its_own_namespaces_mounts_and_devices,
        command_that_does_not_exist_is_named_as_with_other_runtimes,
        container_that_was_never_started_can_be_deleted,
        container_with_a_taken_or_bad_id_is_refused,
        exec_joins_the_container_and_takes_its_defaults,
        exec_in_an_ended_container_is_refused,
        exec_that_is_too_slow_is_killed,
        storm_of_orphans_and_execs_loses_no_exit,
        signal_to_all_reaches_every_process,
        frozen_container_stands_still_until_it_is_thawed,
        hooks_run_in_their_order_with_the_state,
        failing_hook_fails_the_creation_by_name;
    files:
        volumes_are_mounted_where_the_specification_says,
        volume_whose_source_is_missing_is_named,
        mount_point_with_a_link_out_of_the_root_stays_inside,
        read_only_root_cannot_be_written,
        mounts_made_later_are_seen_as_propagation_says,
        mounts_made_later_are_seen_with_a_shared_root_as_well,
        working_directory_that_is_missing_is_made;
    privileges:
        process_runs_with_its_user_groups_and_capabilities,
        system_calls_that_the_filter_refuses_fail,
        devices_outside_the_rules_cannot_be_opened,
        user_namespace_maps_root_to_somebody_else,
        agent_executable_cannot_be_written_by_a_container;
    limits:
        process_limit_stops_a_fork_bomb,
        container_over_its_memory_is_reported_as_killed,
        limits_can_be_changed_while_it_runs;
    streams:
        output_waits_for_a_connection_and_survives_the_end,
        second_connection_takes_the_place_of_the_first,
        input_reaches_the_process_until_it_ends,
        terminal_has_its_size_and_is_the_console,
        archive_goes_out_and_in_with_owners_modes_and_links,
        connection_to_a_port_of_the_pod_carries_bytes;
    pod:
        containers_share_processes_when_the_pod_says_so,
        network_is_configured_as_asked,
        pod_with_a_user_namespace_has_namespaces_of_its_own;
    service:
        service_answers_with_codes_and_sentences,
];
