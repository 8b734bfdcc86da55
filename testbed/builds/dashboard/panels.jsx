/*
Draws a dashboard of Grafana's as Grafana does: its own components (@grafana/ui), its own units, colours, thresholds,
mappings and overrides (@grafana/data), its own default options (@grafana/schema), on its grid of 24 columns.

What a Grafana server adds is here in small: putting query results into data frames, names of series by legendFormat, and
which component belongs to a panel's type. A panel of another type is an error, so that none goes missing.

`draw` gets what testbed/dashboard.py has asked Prometheus; nothing here asks anybody anything.
*/

import '@fontsource/inter/latin-400.css';
import '@fontsource/inter/latin-500.css';
import 'uplot/dist/uPlot.min.css';

import {
  applyFieldOverrides,
  createTheme,
  dateTime,
  FieldConfigOptionsRegistry,
  FieldType,
  getDisplayValueAlignmentFactors,
  getFieldDisplayValues,
  identityOverrideProcessor,
  ThemeContext,
  toDataFrame,
} from '@grafana/data';
import { initPluginTranslations } from '@grafana/i18n';
import { defaultVizLegendOptions } from '@grafana/schema';
import { BigValue, GlobalStyles, InlineField, Input, PanelChrome, TimeSeries, VizRepeater } from '@grafana/ui';
import { createRoot } from 'react-dom/client';

const COLUMNS = 24;
const ROW = 30;
const GAP = 8;
const ZONE = 'utc';
const AS_IT_IS = (text) => text;

// What a panel of its type begins with, where its JSON says nothing.
const STAT = {
  colorMode: 'value',
  graphMode: 'area',
  justifyMode: 'auto',
  orientation: 'auto',
  textMode: 'auto',
  reduceOptions: { calcs: ['lastNotNull'], fields: '', values: false },
};
const SERIES = {
  axisBorderShow: false,
  axisColorMode: 'text',
  axisGridShow: true,
  axisPlacement: 'auto',
  barAlignment: 0,
  barMaxWidth: 200,
  barWidthFactor: 0.6,
  drawStyle: 'line',
  fillOpacity: 0,
  gradientMode: 'none',
  lineInterpolation: 'linear',
  lineWidth: 1,
  pointSize: 5,
  scaleDistribution: { type: 'linear' },
  showPoints: 'auto',
  spanNulls: false,
  stacking: { group: 'A', mode: 'none' },
};
const PROPERTIES = ['unit', 'min', 'max', 'decimals', 'displayName', 'noValue', 'color', 'thresholds', 'mappings'];

const registry = new FieldConfigOptionsRegistry(() => [
  ...PROPERTIES.map((id) => property(id, false)),
  ...Object.keys(SERIES).map((id) => property(id, true)),
]);

function property(id, isCustom) {
  const [prefix, path] = isCustom ? ['custom.', id] : ['', id];
  const process = identityOverrideProcessor;
  return { id: prefix + id, name: id, path, isCustom, process, override: process, shouldApply: () => true };
}

function frames(panel, told, theme) {
  const found = panel.targets.flatMap((target) =>
    told.results[`${panel.id} ${target.refId}`].map(({ metric, values }) =>
      toDataFrame({
        refId: target.refId,
        fields: [
          {
            name: 'Time',
            type: FieldType.time,
            config: { interval: told.step * 1000 },
            values: values.map(([at]) => at * 1000),
          },
          {
            name: 'Value',
            type: FieldType.number,
            labels: metric,
            config: { displayNameFromDS: target.legendFormat.replace(/{{\s*(\w+)\s*}}/g, (_, label) => metric[label]) },
            values: values.map(([, value]) => (Number.isFinite(Number(value)) ? Number(value) : null)),
          },
        ],
      })
    )
  );
  return applyFieldOverrides({
    data: found,
    fieldConfig: panel.fieldConfig,
    fieldConfigRegistry: registry,
    replaceVariables: AS_IT_IS,
    theme,
    timeZone: ZONE,
  });
}

function Stat({ panel, data, theme, width, height }) {
  const options = { ...STAT, ...panel.options };
  const values = () =>
    getFieldDisplayValues({
      data,
      fieldConfig: panel.fieldConfig,
      reduceOptions: options.reduceOptions,
      replaceVariables: AS_IT_IS,
      sparkline: options.graphMode !== 'none',
      theme,
      timeZone: ZONE,
    });
  const one = ({ value, alignmentFactors, width, height, count }) => (
    <BigValue
      value={value.display}
      sparkline={value.sparkline}
      colorMode={options.colorMode}
      graphMode={options.graphMode}
      justifyMode={options.justifyMode}
      textMode={options.textMode}
      {...{ alignmentFactors, width, height, count, theme }}
    />
  );
  return (
    <VizRepeater
      getValues={values}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      renderValue={one}
      source={data}
      renderCounter={0}
      itemSpacing={3}
      autoGrid
      orientation={options.orientation}
      {...{ width, height }}
    />
  );
}

function Series({ panel, data, range, width, height }) {
  const legend = { ...defaultVizLegendOptions, ...panel.options.legend };
  return <TimeSeries frames={data} timeRange={range} timeZone={ZONE} {...{ legend, width, height }} />;
}

const KINDS = { stat: [Stat, {}], timeseries: [Series, SERIES] };

function Panel({ panel, told, theme, range, width }) {
  if (!(panel.type in KINDS)) {
    throw new Error(`panel ${panel.id}: type ${panel.type} is not known here`);
  }
  const [Kind, custom] = KINDS[panel.type];
  const { defaults, overrides } = panel.fieldConfig;
  const color = { mode: panel.type === 'stat' ? 'thresholds' : 'palette-classic' };
  const fieldConfig = { defaults: { color, ...defaults, custom: { ...custom, ...defaults.custom } }, overrides };
  const whole = { ...panel, fieldConfig };
  const data = frames(whole, told, theme);
  const { x, y, w, h } = panel.gridPos;
  const column = (width - GAP * (COLUMNS + 1)) / COLUMNS + GAP;
  const place = { position: 'absolute', left: GAP + x * column, top: y * (ROW + GAP) };
  return (
    <div style={place} data-panel={panel.title} data-series={data.length}>
      <PanelChrome
        title={panel.title}
        description={panel.description}
        width={w * column - GAP}
        height={h * (ROW + GAP) - GAP}
      >
        {(width, height) => <Kind panel={whole} {...{ data, theme, range, width, height }} />}
      </PanelChrome>
    </div>
  );
}

function Dashboard({ told, theme, width }) {
  const { dashboard, variables, from, to } = told;
  const [begin, end] = [dateTime(from * 1000).utc(), dateTime(to * 1000).utc()];
  const range = { from: begin, to: end, raw: { from: begin, to: end } };
  const rows = Math.max(...dashboard.panels.map(({ gridPos }) => gridPos.y + gridPos.h));
  const time = `${begin.format('HH:mm:ss')} to ${end.format('HH:mm:ss')} UTC`;
  return (
    <div id="dashboard" style={{ background: theme.colors.background.canvas, width }}>
      <h3 style={{ padding: `${GAP}px ${GAP}px 0`, margin: 0 }}>{dashboard.title}</h3>
      <div style={{ display: 'flex', padding: GAP }}>
        {[...variables, ['Time', time]].map(([label, value]) => (
          <InlineField key={label} label={label}>
            <Input value={value} width={Math.max(14, value.length + 2)} readOnly />
          </InlineField>
        ))}
      </div>
      <div style={{ position: 'relative', height: rows * (ROW + GAP) }}>
        {dashboard.panels.map((panel) => (
          <Panel key={panel.id} {...{ panel, told, theme, range, width }} />
        ))}
      </div>
    </div>
  );
}

window.draw = async (told, width) => {
  const theme = createTheme({ colors: { mode: 'light' } });
  await initPluginTranslations('grafana', []);
  createRoot(document.body.appendChild(document.createElement('div'))).render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <Dashboard {...{ told, theme, width }} />
    </ThemeContext.Provider>
  );
};
